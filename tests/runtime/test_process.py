"""A trial in a process of its own: however it ends, the search knows."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from llamatune_torch import (
    Cause,
    ExecutorError,
    IgnoredParameterWarning,
    Integer,
    LlamaTune,
    OutcomeError,
    Real,
    Trial,
    TrialState,
)
from llamatune_torch.runtime import process
from llamatune_torch.runtime.evaluation import report
from llamatune_torch.runtime.runners import make_runner

SPACE = {"x": Real(-1, 1), "n": Integer(1, 8)}


FORKS = multiprocessing.get_context("spawn")


def hill(params: dict[str, Any]) -> float:
    return -((params["x"] - 0.3) ** 2) - 0.01 * params["n"]


def tuner(function: Any = hill, max_evals: int = 4, **changes: Any) -> LlamaTune:
    return LlamaTune(SPACE, function, max_evals, **{"n_initial": 100, "progress": False, **changes})


def fate(params: dict[str, Any]) -> float:
    """Does what ``n`` says; run in processes."""
    n = params["n"]
    report(1, 0.25, 0.5)
    if n == 1:
        os._exit(3)
    if n == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if n == 3:
        ctypes.string_at(0)  # a segmentation fault
    if n == 4:
        time.sleep(600)
    if n == 5:
        raise ValueError("too hot")
    if n == 6:
        warnings.warn("nobody reads x", IgnoredParameterWarning, stacklevel=2)
    report(2, 0.75, 1.0)
    return float(n)


def points(*fates: int) -> list[dict[str, Any]]:
    return [{"x": i / 10, "n": n} for i, n in enumerate(fates)]


def by_fate(optimizer: LlamaTune) -> dict[int, Trial]:
    return {trial.params["n"]: trial for trial in optimizer.study.trials}


# --- Processes of our own ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("isolate", [False, True])
def test_a_process_that_dies_or_hangs_costs_its_own_trial_and_says_how(isolate: bool) -> None:
    optimizer = tuner(fate, 8, initial_points=points(1, 2, 3, 4, 5, 6, 7, 8))
    with pytest.warns(IgnoredParameterWarning, match="nobody reads x"):
        optimizer.optimize(n_workers=2, isolate=isolate, trial_timeout=1.0)
    trials = by_fate(optimizer)
    reasons = {n: trial.reason for n, trial in trials.items()}
    assert reasons == {
        1: "exit code 3",
        2: "killed by signal 9 (SIGKILL)",
        3: "killed by signal 11 (SIGSEGV)",
        4: "timeout",
        5: "ValueError",
        6: None,
        7: None,
        8: None,
    }
    assert [trials[n].state for n in (1, 4, 5, 6)] == ["failed", "failed", "failed", "complete"]
    assert {n: trial.cause for n, trial in trials.items() if trial.cause} == {
        1: Cause.ERROR,
        2: Cause.KILLED,
        3: Cause.ERROR,
        4: Cause.TIMEOUT,
        5: Cause.ERROR,
    }
    # What somebody killed says nothing about its parameters: it has run once more, and counts once.
    assert [trial.origin for trial in optimizer.study.trials if trial.params["n"] == 2] == ["initial", "retry"]
    assert (len(optimizer.study.trials), optimizer.study.spent) == (9, 8)
    assert trials[4].error == "killed after 1 s (trial_timeout)"
    assert trials[4].outcomes == {"seconds": 1.0}  # at least
    assert trials[5].error is not None
    assert trials[5].error.endswith("ValueError: too hot")
    # What was reported got through, also from those that died.
    assert trials[2].curve.values == (0.25,)
    assert trials[8].curve.values == (0.25, 0.75)
    assert trials[8].curve.progress == (0.5, 1.0)


def identity(params: dict[str, Any]) -> float:
    Path(f"pid-{os.getpid()}").touch()
    time.sleep(0.05)
    return params["x"]


def test_isolated_trials_have_a_fresh_process_each_others_share_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tuner(identity, 6).optimize(n_workers=2)
    assert 1 <= len(list(tmp_path.iterdir())) <= 2
    tuner(identity, 3).optimize(isolate=True)
    assert len(list(tmp_path.iterdir())) in (4, 5)


GRANDCHILD = "import time; open('grandchild', 'w').write(str(__import__('os').getpid())); time.sleep(600)"


def leaves_a_child_behind(params: dict[str, Any]) -> float:
    subprocess.Popen([sys.executable, "-c", GRANDCHILD])
    while not Path("grandchild").exists() or not Path("grandchild").read_text():
        time.sleep(0.01)
    if params["n"] == 1:
        os._exit(1)
    if params["n"] == 2:
        time.sleep(600)
    return 1.0


class LoadsSlowly:
    """Hangs where it is unpickled, once there is a file ``slow``."""

    def __init__(self) -> None:
        self.state = "which asks for __setstate__"

    def __call__(self, params: dict[str, Any]) -> float:
        return 1.0

    def __setstate__(self, state: dict[str, Any]) -> None:
        if Path("slow").exists():
            Path("hangs").write_text(str(os.getpid()))
            time.sleep(600)


def test_a_trial_that_hangs_while_it_is_loaded_ends_the_search_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def slow_from_now_on(optimizer: LlamaTune, trial: Trial) -> None:
        Path("slow").touch()
        monkeypatch.setattr(process, "_START", 1.5)

    optimizer = tuner(LoadsSlowly(), 3, callbacks=[slow_from_now_on])
    start = time.monotonic()
    with pytest.raises(ExecutorError, match=r"process took more than 1\.5 s to load the evaluation, that is"):
        optimizer.optimize(n_workers=1)
    assert time.monotonic() - start < 60
    assert [trial.state for trial in optimizer.study.trials] == ["complete", "lost"]
    assert not alive(int(Path("hangs").read_text()))


def alive(pid: int) -> bool:
    """Whether a process does anything; one that only waits to be reaped does not."""
    status = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return bool(status.stdout.strip()) and not status.stdout.strip().startswith("Z")


@pytest.mark.parametrize("n", [1, 2, 3], ids=["dies", "hangs", "ends"])
def test_nothing_that_a_trial_has_started_outlives_it(n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    optimizer = tuner(leaves_a_child_behind, 1, initial_points=points(n))
    optimizer.run(*_run_arguments(optimizer, isolate=True, trial_timeout=2.0))
    grandchild = int(Path("grandchild").read_text())
    assert optimizer.study.trials[0].state is (TrialState.COMPLETE if n == 3 else TrialState.FAILED)
    deadline = time.monotonic() + 5
    while alive(grandchild) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(grandchild)
    with suppress(ChildProcessError):  # other tests' database server may be a child too, but no zombie
        assert os.waitpid(-1, os.WNOHANG) == (0, 0)


def _run_arguments(optimizer: LlamaTune, **where: Any) -> tuple[Any, Any]:
    from llamatune_torch.runtime.evaluation import OnParams

    assert optimizer.model_eval_fn is not None
    return OnParams(optimizer.model_eval_fn, optimizer.study.space), make_runner(**where)


def string(params: dict[str, Any]) -> Any:
    return "0.93"


def test_a_mistake_in_the_use_of_the_package_is_raised_here_as_in_the_plain_loop() -> None:
    optimizer = tuner(string)
    with pytest.raises(OutcomeError, match=r"must return a number or an Outcome, but got '0.93' \(str\)"):
        optimizer.optimize(n_workers=1)
    assert [trial.state for trial in optimizer.study.trials] == ["lost"]


POOLS = pytest.mark.parametrize(
    "where", [lambda: {"n_workers": 2}, lambda: {"executor": ProcessPoolExecutor(2, FORKS)}], ids=["n_workers", "pool"]
)


@POOLS
def test_what_cannot_be_pickled_is_an_error_before_any_trial(where: Callable[[], dict[str, Any]]) -> None:
    lock = threading.Lock()
    optimizer = tuner(lambda params: lock.locked())
    with pytest.raises(ExecutorError, match=r"the evaluation cannot be sent to another process: what it uses must be"):
        optimizer.optimize(**where())
    assert optimizer.study.trials == ()


@POOLS
def test_lambdas_and_closures_run_in_other_processes(where: Callable[[], dict[str, Any]]) -> None:
    weights = [0.5, os.getpid()]

    def closure(params: dict[str, Any]) -> float:
        assert os.getpid() != weights[1]
        return weights[0] * params["x"]

    optimizer = tuner(lambda params: closure(params), 2)
    optimizer.optimize(**where())
    assert [trial.value for trial in optimizer.study.trials] == [0.5 * t.params["x"] for t in optimizer.study.trials]


def program(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    path = folder / "program.py"
    path.write_text(code)
    return subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=False, timeout=120)


PROGRAM = """
from llamatune_torch import LlamaTune
def square(params):
    print("evaluated", flush=False)
    return params["x"] ** 2
{guard}optimizer = LlamaTune({{"x": (0.0, 1.0)}}, square, max_evals=2)
{guard}print(optimizer.optimize(n_workers=1)[1] > 0)
"""


def test_a_function_of_the_program_itself_is_found_and_what_it_prints_arrives(tmp_path: Path) -> None:
    result = program(tmp_path, PROGRAM.format(guard="if __name__ == '__main__':\n ").replace("\n if", "\nif"))
    assert result.returncode == 0, result.stderr
    assert sorted(result.stdout.split()) == ["True", "evaluated", "evaluated"]


def test_a_function_from_a_prompt_or_a_notebook_is_sent_as_it_is() -> None:
    code = PROGRAM.format(guard="").replace("def square", "power = 2\ndef square").replace("** 2", "** power")
    result = subprocess.run([sys.executable], input=code, capture_output=True, text=True, check=False, timeout=120)
    assert sorted(result.stdout.split()) == ["True", "evaluated", "evaluated"], result.stderr


def test_a_working_directory_that_is_gone_is_an_error_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(ExecutorError, match="because the working directory is gone"):
        tuner().optimize(n_workers=1)


def test_a_program_without_a_guard_is_told_so_and_starts_no_processes_without_end(tmp_path: Path) -> None:
    result = program(tmp_path, PROGRAM.format(guard=""))
    assert result.returncode == 1
    assert "ExecutorError: a trial's process ended while it started (exit code 1)" in result.stderr
    assert "if __name__ == '__main__'" in result.stderr


# --- The same rules as in the plain loop -------------------------------------------------------------------------


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(3) as pool:
        yield pool
