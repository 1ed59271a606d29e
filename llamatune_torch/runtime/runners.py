"""Runners of trials: this thread, processes of this machine, or somebody's executor.

All three look the same to the loop (``loop.py``). ``capacity`` is the number of trials that fit; ``submit`` returns a
job with ``done()`` and ``result()``. In the plain loop one trial fits, and its job is done when it is submitted.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any, Literal, Protocol

from llamatune_torch.errors import ExecutorError, LlamaTuneError, SettingsError
from llamatune_torch.runtime.evaluation import Evaluate, run_trial
from llamatune_torch.runtime.process import TrialProcess, pickled, run_pickled
from llamatune_torch.trial import Outcome, Trial

Gpus = Literal["auto"] | Sequence[int | str]
#: Hears of what happens in a trial: its number, "report" or "warning", and the point or the warning.
Post = Callable[[int, str, Any], None]


class Job(Protocol):
    """A future, or something that looks like one. ``add_done_callback`` and ``cancel`` are optional."""

    def done(self) -> bool: ...
    def result(self) -> Any: ...


class Executor(Protocol):
    """Anything with the ``submit`` of ``concurrent.futures``."""

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Job: ...


class Runner(Protocol):
    """Runs up to ``capacity`` trials at the same time."""

    capacity: int
    #: Whether ``submit`` returns after the trial, so that Ctrl-C may be raised in it.
    synchronous: bool

    def check(self, evaluate: Evaluate) -> None:
        """Raises ``ExecutorError`` if this cannot run there."""

    def submit(self, evaluate: Evaluate, trial: Trial, post: Post) -> Job:
        """Starts a trial; the job's result is an ``Outcome``, or a ``LlamaTuneError`` to raise."""

    def close(self) -> None:
        """The end: stops what is still running, if that can be stopped."""


def make_runner(
    executor: Executor | None = None,
    n_workers: int | None = None,
    gpus: Gpus | None = None,
    isolate: bool = False,
    trial_timeout: float | None = None,
) -> Runner:
    """The runner that the arguments of ``LlamaTune.optimize`` call for.

    Raises:
        SettingsError: an argument out of its range, or two that do not go together.
    """
    if n_workers is not None and (not isinstance(n_workers, int) or isinstance(n_workers, bool) or n_workers < 1):
        raise SettingsError(f"n_workers must be an integer >= 1, but got {n_workers!r}")
    if trial_timeout is not None and not (isinstance(trial_timeout, (int, float)) and trial_timeout > 0):
        raise SettingsError(f"trial_timeout must be a number of seconds > 0, but got {trial_timeout!r}")
    if executor is not None:
        if not callable(getattr(executor, "submit", None)):
            raise SettingsError(f"executor must have a submit() as concurrent.futures' have, but got {executor!r}")
        if gpus is not None or isolate or trial_timeout is not None:
            raise SettingsError(
                "gpus, isolate and trial_timeout are for the processes of n_workers; those of an executor are its own"
            )
        return ExecutorRunner(executor, n_workers)
    if n_workers is None and gpus is None and not isolate:
        if trial_timeout is not None:
            raise SettingsError("trial_timeout needs isolate=True or n_workers: only a process can be stopped")
        return InlineRunner()
    return ProcessRunner(n_workers, gpus, isolate, trial_timeout)


class InlineRunner:
    """One trial at a time, right here."""

    capacity = 1
    synchronous = True

    def check(self, evaluate: Evaluate) -> None: ...

    def submit(self, evaluate: Evaluate, trial: Trial, post: Post) -> Job:
        job: Future[Outcome | LlamaTuneError] = Future()
        job.set_result(run_trial(evaluate, trial, lambda *point: post(trial.number, "report", point)))
        return job

    def close(self) -> None: ...


class ProcessRunner:
    """So many processes of this machine, each with a GPU of its own if wanted; a thread watches over each.

    A process that dies or hangs takes one trial with it, and no other.
    """

    synchronous = False

    def __init__(self, n_workers: int | None, gpus: Gpus | None, isolate: bool, trial_timeout: float | None) -> None:
        if os.name != "posix":
            raise SettingsError("n_workers, gpus and isolate need Linux or macOS; elsewhere, pass an executor")
        ids = None if gpus is None else gpu_ids(gpus)
        self.capacity = n_workers or len(ids or [""])
        # As many threads as there are cores, for each of several processes, would only wait for each other.
        threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // self.capacity))}
        shared = threads if self.capacity > 1 and "OMP_NUM_THREADS" not in os.environ else {}
        self._children: list[TrialProcess] = []
        self._free: queue.SimpleQueue[TrialProcess] = queue.SimpleQueue()
        for i in range(self.capacity):
            gpu = {} if ids is None else {"CUDA_VISIBLE_DEVICES": ids[i % len(ids)]}
            self._children.append(TrialProcess(shared | gpu, isolate, trial_timeout))
            self._free.put(self._children[-1])
        self._threads = ThreadPoolExecutor(self.capacity, "llamatune-slot")

    def check(self, evaluate: Evaluate) -> None:
        pickled(evaluate)

    def submit(self, evaluate: Evaluate, trial: Trial, post: Post) -> Job:
        return self._threads.submit(self._run, pickled(evaluate, trial), trial.number, post)

    def _run(self, task: bytes, number: int, post: Post) -> Outcome | LlamaTuneError:
        child = self._free.get()
        try:
            return child.run(task, lambda kind, content: post(number, kind, content))
        finally:
            self._free.put(child)

    def close(self) -> None:
        idle = [self._free.get() for _ in range(self._free.qsize())]
        for child in self._children:
            if child not in idle:
                child.kill()
        self._threads.shutdown(cancel_futures=True)
        for child in self._children:
            child.hang_up()
        for child in self._children:
            child.leave()


class ExecutorRunner:
    """Somebody else's executor, which stays open: it is theirs to shut down."""

    synchronous = False

    def __init__(self, executor: Executor, n_workers: int | None) -> None:
        n = n_workers or getattr(executor, "_max_workers", None)
        if n is None:
            raise SettingsError(f"say with n_workers how many trials {type(executor).__name__} is to run at a time")
        self.capacity = int(n)
        self._executor = executor
        self._own: ProcessPoolExecutor | None = None

    def check(self, evaluate: Evaluate) -> None:
        if isinstance(self._executor, ProcessPoolExecutor):  # others may have a pickle of their own
            pickled(evaluate)

    def submit(self, evaluate: Evaluate, trial: Trial, post: Post) -> Job:
        try:
            return self._submit(evaluate, trial, post)
        except BrokenExecutor as error:
            self._executor = self._rebuilt(error)
            return self._submit(evaluate, trial, post)

    def _submit(self, evaluate: Evaluate, trial: Trial, post: Post) -> Job:
        if isinstance(self._executor, ProcessPoolExecutor):
            return self._executor.submit(run_pickled, pickled(evaluate, trial))
        # A function that hears of reports as they come can go to a thread only; elsewhere they come with the outcome.
        listener = None
        if isinstance(self._executor, ThreadPoolExecutor):

            def listener(*point: Any) -> None:
                post(trial.number, "report", point)

        return self._executor.submit(run_trial, evaluate, trial, listener)

    def _rebuilt(self, error: BrokenExecutor) -> Executor:
        """A pool like the one that broke, which can never be used again."""
        broken = self._executor
        if not isinstance(broken, ProcessPoolExecutor):
            raise ExecutorError(f"{type(broken).__name__} is broken, and cannot be built again: {error}") from error
        self.close()
        names = ("max_workers", "mp_context", "initializer", "initargs", "max_tasks_per_child")
        self._own = ProcessPoolExecutor(**{name: getattr(broken, f"_{name}") for name in names})
        return self._own

    def close(self) -> None:
        if self._own is not None:
            self._own.shutdown(wait=False, cancel_futures=True)


def gpu_ids(gpus: Gpus) -> list[str]:
    """One ``CUDA_VISIBLE_DEVICES`` for each slot.

    "auto" means all GPUs that this process may use; an entry of a list may also hold several, such as "0,1".

    Raises:
        SettingsError: there are none.
    """
    if gpus == "auto":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is None:
            import torch  # only for this: a process that runs trials may do without

            visible = ",".join(map(str, range(torch.cuda.device_count())))
        ids = [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
        if not ids:
            raise SettingsError("gpus='auto' found no CUDA device")
        return ids
    if (
        isinstance(gpus, str)
        or not all(isinstance(i, (int, str)) and not isinstance(i, bool) for i in gpus)
        or not gpus
    ):
        raise SettingsError(f"gpus must be 'auto' or a list of device numbers or names, but got {gpus!r}")
    return [str(i) for i in gpus]
