"""Trials in other processes, threads and pools: the same loop, whatever becomes of where they run."""

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
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from llamatune_torch import (
    Cause,
    ExecutorError,
    IgnoredParameterWarning,
    Integer,
    LlamaTune,
    OutcomeError,
    Real,
    SettingsError,
    Trial,
    TrialState,
)
from llamatune_torch.runtime import process
from llamatune_torch.runtime.evaluation import report
from llamatune_torch.runtime.runners import ExecutorRunner, InlineRunner, ProcessRunner, gpu_ids, make_runner

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
    assert (len(optimizer.study.trials), optimizer.num_counted()) == (9, 8)
    assert trials[4].error == "killed after 1 s (trial_timeout)"
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


def seen_gpus(params: dict[str, Any]) -> float:
    with Path("seen").open("a") as file:
        file.write(f"{os.environ['CUDA_VISIBLE_DEVICES']} {EARLY} {os.environ.get('OMP_NUM_THREADS')}\n")
    time.sleep(0.2)
    return 0.0


# Taken down when this module is imported in the child, which is when its torch is.
EARLY = os.environ.get("CUDA_VISIBLE_DEVICES")


def test_each_slot_sees_a_gpu_of_its_own_before_torch_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    tuner(seen_gpus, 6).optimize(gpus=[5, "7"])
    seen = {tuple(line.split()) for line in Path("seen").read_text().splitlines()}
    threads = str(max(1, (os.cpu_count() or 1) // 2))
    assert seen == {("5", "5", threads), ("7", "7", threads)}


def test_auto_means_the_gpus_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-8932f937,-1")
    assert gpu_ids("auto") == ["2", "GPU-8932f937"]
    assert make_runner(gpus="auto").capacity == 2
    assert make_runner(gpus="auto", n_workers=3).capacity == 3
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert gpu_ids("auto") == ["0", "1", "2"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(SettingsError, match="gpus='auto' found no CUDA device"):
        gpu_ids("auto")


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
    return OnParams(optimizer.model_eval_fn), make_runner(**where)


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


# --- Other people's executors ------------------------------------------------------------------------------------


def test_threads_run_at_the_same_time_and_nobody_waits_for_the_slowest() -> None:
    release = threading.Event()
    ended: list[int] = []

    def one_is_slow(params: dict[str, Any]) -> float:
        if params["n"] == 1:
            assert release.wait(30)
        ended.append(params["n"])
        if len(ended) == 5:
            release.set()
        return hill(params)

    optimizer = tuner(one_is_slow, 6, initial_points=points(1, 2, 3, 4, 5, 6))
    with ThreadPoolExecutor(2) as pool:
        best_params, best_score = optimizer.optimize(executor=pool)
    assert ended[-1] == 1  # while it ran, the other thread went through all others
    assert best_score == hill(best_params)
    assert [trial.state for trial in optimizer.study.trials] == ["complete"] * 6


class Counting:
    """A synchronous executor whose jobs look like submitit's: they can only be asked."""

    def __init__(self) -> None:
        self.running = self.most = 0

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Any:
        self.running += 1
        self.most = max(self.most, self.running)
        return self.Job(self, fn, args)

    class Job:
        def __init__(self, executor: Counting, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
            self.executor, self.call, self.looks = executor, lambda: fn(*args), 0

        def done(self) -> bool:
            self.looks += 1
            return self.looks > 3

        def result(self) -> Any:
            self.executor.running -= 1
            return self.call()


def test_jobs_that_can_only_be_asked_whether_they_are_done_will_do() -> None:
    executor = Counting()
    optimizer = tuner(max_evals=5)
    optimizer.optimize(executor=executor, n_workers=3)
    assert executor.most == 3
    assert [trial.state for trial in optimizer.study.trials] == ["complete"] * 5


def kills_its_worker(params: dict[str, Any]) -> float:
    if params["n"] == 1:
        os._exit(1)
    time.sleep(0.1)
    return 1.0


def test_a_pool_that_breaks_costs_its_trials_and_is_built_again(caplog: pytest.LogCaptureFixture) -> None:
    optimizer = tuner(kills_its_worker, 3, initial_points=points(1, 2, 3))
    with ProcessPoolExecutor(1, FORKS) as pool:
        optimizer.optimize(executor=pool)
    assert [trial.state for trial in optimizer.study.trials] == ["failed", "complete", "complete"]
    assert optimizer.study.trials[0].reason == "worker died"


class Breaking:
    """A pool that breaks so many times, with all trials in it."""

    _max_workers = 2

    def __init__(self, times: int) -> None:
        self.times = times
        self.waiting: list[Future[Any]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if self.times <= 0:
            future.set_result(fn(*args))
            return future
        self.waiting.append(future)
        if len(self.waiting) == 2:
            self.times -= 1
            from concurrent.futures.process import BrokenProcessPool

            for broken in self.waiting:
                broken.set_exception(BrokenProcessPool("a child died"))
            self.waiting = []
        return future


def test_nobody_is_blamed_for_a_pool_that_breaks_with_several_trials_in_it(caplog: pytest.LogCaptureFixture) -> None:
    optimizer = tuner(max_evals=3)
    optimizer.optimize(executor=Breaking(1))
    states = [trial.state.value for trial in optimizer.study.trials]
    assert states == ["lost", "lost", "complete", "complete", "complete"]
    assert optimizer.study.trials[0].reason == "a worker of its pool died"
    assert "trial 0: lost: a worker of its pool died" in caplog.text


def test_a_pool_that_keeps_breaking_is_an_error() -> None:
    optimizer = tuner(max_evals=3)
    with pytest.raises(ExecutorError, match=r"8 trials in a row were lost with the workers of an executor"):
        optimizer.optimize(executor=Breaking(1000))
    assert {trial.state for trial in optimizer.study.trials} == {TrialState.LOST}


def test_an_executor_that_was_shut_down_is_an_error_and_leaves_nothing_running() -> None:
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    optimizer = tuner()
    with pytest.raises(ExecutorError, match=r"the executor takes no trial: .*after shutdown"):
        optimizer.optimize(executor=pool)
    assert [trial.state for trial in optimizer.study.trials] == ["lost"]


class Controlled:
    """Its jobs are done when the test says so."""

    def __init__(self) -> None:
        self.jobs: list[Future[Any]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        self.jobs.append(Future())
        if len(self.jobs) == 3:  # two of them end at the same time, one never
            for job in self.jobs[:2]:
                job.set_result(fn(*args))
        return self.jobs[-1]


def test_at_ctrl_c_what_is_done_is_kept_and_what_is_not_is_cancelled_and_given_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def interrupted(optimizer: LlamaTune, trial: Trial) -> None:
        if trial.number == 0:
            raise KeyboardInterrupt

    executor = Controlled()
    optimizer = tuner(max_evals=9, callbacks=[interrupted])
    optimizer.optimize(executor=executor, n_workers=3)
    assert optimizer.interrupted
    assert [trial.state for trial in optimizer.study.trials] == ["complete", "complete", "lost"]
    assert optimizer.study.trials[2].reason == "interrupted"
    assert executor.jobs[2].cancelled()
    assert "interrupted after 2 finished trials" in caplog.text


def reported_and_gone(params: dict[str, Any]) -> float:
    report(10, 0.5, 1.0)
    return 0.5


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_learning_curves_reach_the_study_through_any_executor(kind: str) -> None:
    optimizer = tuner(reported_and_gone, 2)
    with ThreadPoolExecutor(2) if kind == "threads" else ProcessPoolExecutor(1, FORKS) as pool:
        optimizer.optimize(executor=pool)
    assert [trial.curve.values for trial in optimizer.study.trials] == [(0.5,)] * 2


# --- The same rules as in the plain loop -------------------------------------------------------------------------


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(3) as pool:
        yield pool


def test_the_budget_is_exact_whatever_fails(pool: ThreadPoolExecutor) -> None:
    def some_fail(params: dict[str, Any]) -> float:
        if params["n"] % 2:
            raise MemoryError
        return 1.0

    optimizer = tuner(some_fail, 11)
    optimizer.optimize(executor=pool)
    assert len(optimizer.study.trials) == 11
    assert len(optimizer.study.failed) == sum(trial.params["n"] % 2 for trial in optimizer.study.trials) > 0


def test_stop_and_max_failures_start_nothing_more_but_let_what_runs_end(pool: ThreadPoolExecutor) -> None:
    optimizer = tuner(max_evals=50, callbacks=[lambda optimizer, trial: optimizer.stop()])
    optimizer.optimize(executor=pool)
    assert 1 <= len(optimizer.study.completed) == len(optimizer.study.trials) <= 4

    def fails(params: dict[str, Any]) -> float:
        raise ValueError

    optimizer = tuner(fails, 50, max_failures=2)
    optimizer.add_trial({"x": 0.0, "n": 1}, 0.5)
    optimizer.optimize(executor=pool)
    assert 3 <= len(optimizer.study.failed) == len(optimizer.study.trials) - 1 <= 6


def test_a_timeout_starts_nothing_more_but_lets_what_runs_end(
    pool: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "llamatune_torch")
    optimizer = tuner(lambda params: time.sleep(0.3) or 1.0, 50, timeout=0.1)
    optimizer.optimize(executor=pool)
    assert [trial.state for trial in optimizer.study.trials] == ["complete"] * 3
    assert caplog.text.count("the timeout of 0.1 s has passed") == 1


def test_a_finite_space_is_gone_through_once(pool: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "llamatune_torch")
    optimizer = LlamaTune({"c": list("abcde")}, lambda params: ord(params["c"]), max_evals=20, progress=False)
    assert optimizer.optimize(executor=pool) == ({"c": "e"}, 101.0)
    assert len(optimizer.study.trials) == 5
    assert caplog.text.count("all 5 points of the space are done or running") == 1


def test_callbacks_and_records_are_made_in_the_thread_that_called_optimize(pool: ThreadPoolExecutor) -> None:
    threads: set[int] = set()
    optimizer = tuner(max_evals=5, callbacks=[lambda optimizer, trial: threads.add(threading.get_ident())])
    optimizer.optimize(executor=pool)
    assert threads == {threading.get_ident()}


def test_report_outside_of_a_trial_is_an_error() -> None:
    from llamatune_torch import TrialStateError

    with pytest.raises(TrialStateError, match=r"report\(\) was called outside of an evaluation"):
        report(1, 0.5)


# --- No two workers at the same place ----------------------------------------------------------------------------


def test_eight_workers_get_points_that_are_far_apart() -> None:
    """Also where the acquisition has one sharp peak, onto which each of them would go alone."""
    space = {"x": Real(0, 1), "y": Real(0, 1)}
    optimizer = LlamaTune(space, max_evals=60, seed=1)
    for _ in range(12):
        trial = optimizer.ask()
        optimizer.tell(trial, -((trial.params["x"] - 0.7) ** 2) - (trial.params["y"] - 0.2) ** 2)
    running = [optimizer.ask() for _ in range(8)]
    for _ in range(4):  # one ends, the next is asked for, as with eight workers
        oldest = running.pop(0)
        optimizer.tell(oldest, -((oldest.params["x"] - 0.7) ** 2) - (oldest.params["y"] - 0.2) ** 2)
        running.append(optimizer.ask())
        X = torch.from_numpy(optimizer.study.space.encode_all([trial.params for trial in running]))
        apart = torch.cdist(X, X, p=float("inf")) + torch.eye(len(X)) * 9
        assert apart.min() > 0.005, apart.min()


# --- Arguments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"n_workers": 0}, r"n_workers must be an integer >= 1, but got 0"),
        ({"n_workers": True}, r"n_workers must be an integer >= 1, but got True"),
        ({"n_workers": 1, "trial_timeout": 0}, r"trial_timeout must be a number of seconds > 0, but got 0"),
        ({"trial_timeout": 5}, r"trial_timeout needs isolate=True or n_workers"),
        ({"executor": 4}, r"executor must have a submit\(\) .*, but got 4"),
        ({"executor": Counting()}, r"say with n_workers how many trials Counting is to run at a time"),
        ({"executor": Counting(), "isolate": True}, r"gpus, isolate and trial_timeout are for the processes of"),
        ({"gpus": []}, r"gpus must be 'auto' or a list of device numbers or names, but got \[\]"),
        ({"gpus": "0,1"}, r"gpus must be 'auto' or a list of device numbers or names, but got '0,1'"),
        ({"gpus": [0.5]}, r"gpus must be 'auto' or a list of device numbers or names, but got \[0.5\]"),
    ],
)
def test_bad_arguments_are_refused_before_any_trial(where: dict[str, Any], message: str) -> None:
    optimizer = tuner()
    with pytest.raises(SettingsError, match=message):
        optimizer.optimize(**where)
    assert optimizer.study.trials == ()


def test_where_trials_run_follows_from_the_arguments() -> None:
    assert isinstance(make_runner(), InlineRunner)
    for where in ({"isolate": True}, {"n_workers": 1}, {"gpus": [0]}):
        assert isinstance(make_runner(**where), ProcessRunner)  # type: ignore[arg-type]
        assert make_runner(**where).capacity == 1  # type: ignore[arg-type]
    with ThreadPoolExecutor(5) as pool:
        assert isinstance(make_runner(pool), ExecutorRunner)
        assert (make_runner(pool).capacity, make_runner(pool, 2).capacity) == (5, 2)
