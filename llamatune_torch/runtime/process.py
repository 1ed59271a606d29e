"""A trial in a process of its own, both ends: ``TrialProcess`` here, ``main`` over there.

The process is started afresh (nothing is forked), with its environment set before Python starts, and leads a session of
its own: Ctrl-C on the terminal does not reach it, and whatever it has started itself is killed with it. What passes
through the pipe, as pairs of a kind and a content:

    to the child       how to find the program's modules; then trials, each ``(evaluate, trial)`` pickled
    from the child     "ready"; for each trial "loaded", then "report" and "warning" as they come, then "result"
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import math
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError
from multiprocessing import Pipe, process, spawn
from multiprocessing.connection import Connection
from typing import Any

from llamatune_torch.errors import ExecutorError, LlamaTuneError, LlamaTuneWarning, SpaceWarning
from llamatune_torch.runtime.cgroup import OomKills
from llamatune_torch.runtime.evaluation import Evaluate, run_trial
from llamatune_torch.trial import Cause, Outcome

#: An environment variable, set for a process that runs one trial and nothing else.
ISOLATED = "LLAMATUNE_ISOLATED"

#: Called with the kind, "report" or "warning", and its content.
Listen = Callable[[str, Any], None]

_RULE = "what it uses must be defined outside of `if __name__ == '__main__':`, and be importable or plain data"
_COMMAND = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from llamatune_torch.runtime.process import main; main(int(sys.argv[1]))"
)
_LOOK = 0.2  # seconds between looks whether the process lives: its pipe may be held open by what it has started
_START = 600.0  # seconds for the imports of a program, and again of an evaluation, from a slow network drive at worst
_LEAVE = 10.0  # seconds for a process to end by itself: its open files, a tracker's last upload


class TrialProcess:
    """A process for one trial at a time.

    Args:
        environment: variables beyond this process's own.
        fresh: whether each trial has a new process.
        timeout: seconds of a trial after which its process is killed; loading does not count, but has a limit too.
    """

    def __init__(self, environment: Mapping[str, str], fresh: bool, timeout: float | None) -> None:
        self._environment = environment
        self._fresh = fresh
        self._timeout = timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection[Any, Any] | None = None
        self._loaded = False
        self._killed = False
        self._lock = threading.Lock()  # between run() and a kill() from another thread

    def run(self, task: bytes, listen: Listen) -> Outcome | LlamaTuneError:
        """Runs a trial, ``(evaluate, trial)`` pickled; a process that dies or hangs is a failed trial.

        Raises:
            ExecutorError: no process could be started, or it took too long to load the trial.
            CancelledError: it was killed from another thread.
        """
        used = self._process is not None
        if not used:
            self._start()
        result = self._perform(task, listen)
        if used and not self._loaded:  # it had died before this trial, which is not to blame
            self._start()
            result = self._perform(task, listen)
        if self._fresh:
            self.hang_up()
            self.leave()
        return result

    def hang_up(self) -> None:
        """Tells an idle process to end."""
        if self._connection is not None:
            self._connection.close()

    def leave(self) -> None:
        """Waits for that, for a while, and ends it otherwise."""
        if self._process is not None:
            self._ends(_LEAVE)
            self._reap()

    def kill(self) -> None:
        """Kills the process and all that it has started, also while another thread is in :meth:`run`."""
        with self._lock:
            self._killed = True
            self._kill_group()

    def _start(self) -> None:
        _open_standard_files()
        here, there = Pipe()
        command = [sys.executable, "-c", _COMMAND, str(there.fileno()), json.dumps(sys.path)]
        how_to_import = _how_to_import()
        with self._lock, there:
            if self._killed:
                raise CancelledError
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **self._environment, **({ISOLATED: "1"} if self._fresh else {})},
                pass_fds=[there.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._connection = here
        with contextlib.suppress(OSError):  # it has died already: seen next
            here.send(how_to_import)
        kind, content = self._receive(time.monotonic() + _START)
        if kind != "ready":
            self._reap()
            if self._killed:
                raise CancelledError
            what = "took too long to start" if kind == "timeout" else f"ended while it started ({content})"
            raise ExecutorError(
                f"a trial's process {what}; see its output above. It imports the program, which must do nothing by "
                f"itself then: put what is not a definition under `if __name__ == '__main__':`"
            )

    def _perform(self, task: bytes, listen: Listen) -> Outcome | LlamaTuneError:
        assert self._connection is not None
        assert self._process is not None
        kills = OomKills(self._process.pid)
        with contextlib.suppress(OSError):  # it has died already: seen next
            self._connection.send_bytes(task)
        self._loaded, deadline = False, time.monotonic() + _START
        while True:
            kind, content = self._receive(deadline)
            if kind == "loaded":
                self._loaded = True
                deadline = math.inf if self._timeout is None else time.monotonic() + self._timeout
            elif kind == "result":
                assert isinstance(content, (Outcome, LlamaTuneError))
                return content
            elif kind == "timeout" and not self._loaded:
                self._reap()
                if self._killed:
                    raise CancelledError
                raise ExecutorError(
                    f"a trial's process took more than {_START:g} s to load the evaluation, that is, to import its "
                    f"module and all that this imports; see its output above"
                )
            elif kind == "timeout":
                self._reap()
                return _timed_out(self._timeout)
            elif kind == "died":
                self._reap()
                if self._killed:
                    raise CancelledError
                return _failure(content, kills.have_risen())
            else:
                listen(kind, content)

    def _receive(self, deadline: float) -> tuple[str, Any]:
        """The next message; or "timeout"; or "died", and of what."""
        assert self._connection is not None
        assert self._process is not None
        ended = False
        while True:
            left = min(_LOOK, deadline - time.monotonic())
            try:
                if self._connection.poll(max(left, 0.0)):
                    message: tuple[str, Any] = self._connection.recv()
                    return message
            except (EOFError, OSError):
                ended = self._ends(_LEAVE)
                break
            if ended:
                break
            ended = self._ends(0.0)  # then once more around: its last words may have come between the two
            if time.monotonic() >= deadline and not ended:
                return "timeout", None
        return "died", _cause(self._process.returncode) if ended else "its pipe closed"

    def _ends(self, seconds: float) -> bool:
        assert self._process is not None
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _reap(self) -> None:
        """No process any more, nor anything that it has started."""
        assert self._connection is not None
        with self._lock:
            self._kill_group()
        self._ends(_LEAVE)  # a bound, since a process that waits for a broken driver cannot even be killed
        self._connection.close()
        with self._lock:
            self._process = None

    def _kill_group(self) -> None:
        # Its number stays that of the group as long as there is anybody in it, also after the process was waited for.
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: EPERM for a group of zombies
                os.killpg(self._process.pid, signal.SIGKILL)


def _open_standard_files() -> None:
    """Opens those of standard input, output and error that are closed, on nothing: a pipe would get their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number that is free


def _how_to_import() -> dict[str, Any]:
    """Lists what a child needs to import the program, not as ``__main__``: the data that multiprocessing sends.

    Raises:
        ExecutorError: the working directory is gone.
    """
    try:
        how = spawn.get_preparation_data("llamatune trial")
    except FileNotFoundError as error:
        raise ExecutorError("no process can be started here, because the working directory is gone") from error
    how["authkey"] = bytes(how["authkey"])  # its own class refuses to be pickled
    if not os.path.exists(how.get("init_main_from_path", sys.executable)):  # "<stdin>"
        del how["init_main_from_path"]
    return how


def pickled(evaluate: Evaluate, *more: Any) -> bytes:
    """Pickles an evaluation for another process: by name what that can import, by value all else.

    By value go lambdas, closures, and what was defined at a prompt or in a notebook. A function of the program itself
    goes by name: by value, the models and data beside it would go along.

    Raises:
        ExecutorError: it cannot be sent.
    """
    import cloudpickle  # only who starts processes needs it

    task, by_name = (evaluate, *more), any(name.startswith("init_main") for name in _how_to_import())
    try:
        if by_name:
            with contextlib.suppress(pickle.PicklingError, AttributeError, TypeError):  # a lambda, a closure
                return pickle.dumps(task)
        by_value: bytes = cloudpickle.dumps(task)
    except Exception as error:
        raise ExecutorError(f"the evaluation cannot be sent to another process: {_RULE}; {error}") from error
    return by_value


def _timed_out(seconds: float | None) -> Outcome:
    """The outcome of a trial that was killed for its time: at least so many seconds, for a limit on them."""
    assert seconds is not None
    error = f"killed after {seconds:g} s (trial_timeout)"
    return Outcome.failure("timeout", error, cost=seconds, outcomes={"seconds": seconds})


def _failure(ended_by: str, oom: bool) -> Outcome:
    """The outcome of a trial whose process died; ``oom`` says that the kernel killed for want of memory meanwhile."""
    error = f"the trial's process ended before the trial: {ended_by}"
    if not ended_by.endswith("(SIGKILL)"):
        return Outcome.failure(ended_by, error, cause=Cause.ERROR)
    if oom:
        return Outcome.failure("out of memory", f"{error}, by the kernel, because memory ran out")
    return Outcome.failure(ended_by, f"{error}; not for want of memory, as far as the kernel says", cause=Cause.KILLED)


def _cause(code: int | None) -> str:
    """Of what a process has died: ``killed by signal 9 (SIGKILL)``, ``exit code 3``."""
    if code is not None and code < 0:
        try:
            return f"killed by signal {-code} ({signal.Signals(-code).name})"
        except ValueError:  # a real-time signal
            return f"killed by signal {-code}"
    return f"exit code {code}"


def main(descriptor: int) -> None:
    """The other end: runs the trials that come through the pipe until it closes, one at a time."""
    faulthandler.enable()  # what a segmentation fault was in, on standard error
    warnings.simplefilter("ignore", SpaceWarning)  # the program has shown those of the lines that are imported again
    connection: Connection[Any, Any] = Connection(descriptor)
    lock, tasks = threading.Lock(), queue.SimpleQueue[bytes | None]()
    busy = threading.Event()

    def say(kind: str, content: Any = None) -> None:
        with lock:
            connection.send((kind, content))

    def watch() -> None:
        """Fetches trials, and sees at once if the program that wants them is gone."""
        while True:
            try:
                tasks.put(connection.recv_bytes())
            except (EOFError, OSError):
                if busy.is_set():  # nobody waits for this result, and a GPU may be wanted
                    os.killpg(0, signal.SIGKILL)
                tasks.put(None)
                return

    process.current_process()._inheriting = True  # type: ignore[attr-defined]  # to be refused to start others meanwhile
    try:
        spawn.prepare(connection.recv())
    finally:
        del process.current_process()._inheriting  # type: ignore[attr-defined]
    warnings.showwarning = _forwarding(warnings.showwarning, say)
    threading.Thread(target=watch, daemon=True).start()
    say("ready")
    while (task := tasks.get()) is not None:
        busy.set()
        say("result", _performed(task, say))
        busy.clear()


def run_pickled(task: bytes) -> Outcome | LlamaTuneError:
    """Runs a trial that :func:`pickled` has packed, in a pool of processes."""
    try:
        evaluate, trial = pickle.loads(task)
    except Exception as error:
        return ExecutorError(f"the evaluation cannot be loaded in another process: {_RULE}; {error!r}")
    return run_trial(evaluate, trial)


def _performed(task: bytes, say: Listen) -> Outcome | LlamaTuneError:
    try:
        evaluate, trial = pickle.loads(task)
    except Exception as error:
        return ExecutorError(f"the evaluation cannot be loaded in another process: {_RULE}; {error!r}")
    finally:
        say("loaded", None)
    result = run_trial(evaluate, trial, lambda *point: say("report", point))
    try:
        pickle.dumps(result)
    except Exception as error:
        return Outcome.failure("result cannot be pickled", repr(error))
    return result


def _forwarding(show: Callable[..., None], say: Listen) -> Callable[..., None]:
    def forward(message: Any, category: type[Warning], *rest: Any, **named: Any) -> None:
        if issubclass(category, LlamaTuneWarning):
            say("warning", message)
        else:
            show(message, category, *rest, **named)

    return forward
