"""Ctrl-C, SIGTERM and SIGHUP, with real processes and real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llamatune_torch import LlamaTune
from llamatune_torch.runtime.interrupts import Interrupts

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends signals")

PROGRAM = """
import itertools, os, sys, time
from concurrent.futures import ThreadPoolExecutor
from llamatune_torch import LlamaTune

def turn():
    # How many trials began before this one, in whatever process.
    for number in itertools.count():
        try:
            with open(str(number), "x") as file:
                file.write(str(os.getpid()))
            return number
        except FileExistsError:
            pass

{function}

if __name__ == "__main__":
    tuner = LlamaTune({{"x": (0.0, 1.0)}}, evaluate, max_evals=50, n_initial=100)
    {before}
    params, value = tuner.optimize({arguments})
    states = [trial.state.value for trial in tuner.study.trials]
    print(tuner.interrupted, states.count("complete") > 0, states.count("lost"), states.count("running"), flush=True)
    {after}
"""

# Two quick trials, then some that never end.
SLOW = """
def evaluate(params):
    number = turn()
    if number >= 2:
        if number == LAST:
            print("ready", flush=True)
        time.sleep(600)
    return params["x"]
"""

STUBBORN = """
def evaluate(params):
    if len(tuner.study.trials) < 3:
        return params["x"]
    while True:
        try:
            print("ready", flush=True)
            time.sleep(600)
        except KeyboardInterrupt:
            pass  # and then it cleans up, for long
        try:
            print("cleaning up", flush=True)
            time.sleep(600)
        finally:
            print("left", flush=True)
"""

SWALLOWS = """
def evaluate(params):
    if len(tuner.study.trials) == 3:
        try:
            print("ready", flush=True)
            time.sleep(600)
        except KeyboardInterrupt:
            pass
    return params["x"]
"""


@contextmanager
def started(folder: Path, function: str, arguments: str = "", **more: str) -> Iterator[subprocess.Popen[str]]:
    """The program, once it has said that it is ready."""
    path = folder / "program.py"
    path.write_text(
        PROGRAM.format(function=textwrap.dedent(function), arguments=arguments, **{"before": "", "after": "", **more})
    )
    process = subprocess.Popen(
        [sys.executable, str(path)],
        cwd=_sub(folder, "work"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _sub(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


def workers(folder: Path) -> set[int]:
    return {int(path.read_text()) for path in (folder / "work").iterdir()}


def gone(pids: set[int], seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        shown = subprocess.run(["ps", "-o", "stat=", "-p", ",".join(map(str, pids))], capture_output=True, text=True)
        if all(line.strip().startswith("Z") for line in shown.stdout.splitlines()):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=["sigint", "sigterm", "sighup"])
def test_one_signal_ends_processes_and_gives_their_trials_back(number: signal.Signals, tmp_path: Path) -> None:
    with started(tmp_path, SLOW.replace("LAST", "3"), "n_workers=2") as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
        assert process.returncode == 0, err
        assert out == "True True 2 0\n"
        assert "Traceback" not in err
        assert err.splitlines()[-1] == "interrupted after 2 finished trials"
        assert gone(workers(tmp_path))


def test_sigterm_ends_the_plain_loop_as_ctrl_c_does(tmp_path: Path) -> None:
    with started(tmp_path, SLOW.replace("LAST", "2")) as process:
        process.terminate()
        out, _ = process.communicate(timeout=30)
    assert out == "True True 1 0\n"


def test_threads_are_given_back_though_they_cannot_be_stopped(tmp_path: Path) -> None:
    with started(
        tmp_path, SLOW.replace("LAST", "3"), "executor=pool", before="pool = ThreadPoolExecutor(2)", after="os._exit(0)"
    ) as process:
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=30)
    assert out == "True True 2 0\n"


def test_a_second_signal_ends_at_once_what_cleans_up_for_long(tmp_path: Path) -> None:
    with started(tmp_path, STUBBORN) as process:
        assert process.stdout is not None
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "cleaning up\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert out == "left\n"  # and nothing after optimize()
    assert process.returncode in (130, -signal.SIGINT)
    assert err.splitlines()[-1] == "KeyboardInterrupt"
    assert "interrupted after 2 finished trials" in err


def test_a_signal_that_the_evaluation_swallows_ends_the_search_all_the_same(tmp_path: Path) -> None:
    with started(tmp_path, SWALLOWS) as process:
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=30)
    assert out == "True True 0 0\n"  # its result was kept


def test_processes_end_with_the_program_that_started_them_even_if_that_is_killed(tmp_path: Path) -> None:
    with started(tmp_path, SLOW.replace("LAST", "3"), "n_workers=2") as process:
        process.kill()
        process.wait(10)
        assert gone(workers(tmp_path))


def test_handlers_are_restored_and_only_the_usual_ones_replaced() -> None:
    def own(*_: object) -> None: ...

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert before[0] is signal.default_int_handler  # pytest leaves it
    signal.signal(signal.SIGTERM, own)
    try:
        with Interrupts() as interrupts:
            assert signal.getsignal(signal.SIGINT) == interrupts._handle
            assert signal.getsignal(signal.SIGTERM) is own
        with pytest.raises(ValueError, match="from inside"), Interrupts():
            raise ValueError("from inside")
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before[1])
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_the_first_signal_waits_until_it_is_allowed_the_second_does_not() -> None:
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)  # between two steps of keeping the record
        assert interrupts.count == 1
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
        with pytest.raises(KeyboardInterrupt), interrupts.allowed():
            pytest.fail("it was not raised")
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    with Interrupts() as interrupts, pytest.raises(KeyboardInterrupt), interrupts.allowed():
        signal.raise_signal(signal.SIGTERM)


def test_a_search_in_another_thread_needs_no_handlers() -> None:
    tuner = LlamaTune({"x": (0.0, 1.0)}, lambda params: params["x"], max_evals=2, n_initial=9, progress=False)
    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=tuner.optimize)
    thread.start()
    thread.join(30)
    assert len(tuner.study.completed) == 2
    assert signal.getsignal(signal.SIGINT) is before
