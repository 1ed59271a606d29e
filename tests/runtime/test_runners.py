"""Trials in other processes, threads and pools: the same loop, whatever becomes of where they run."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from llamatune_torch import (
    ExecutorError,
    Integer,
    LlamaTune,
    Real,
    SettingsError,
    Trial,
    TrialState,
)
from llamatune_torch.runtime.evaluation import report
from llamatune_torch.runtime.runners import ExecutorRunner, InlineRunner, ProcessRunner, gpu_ids, make_runner

SPACE = {"x": Real(-1, 1), "n": Integer(1, 8)}


FORKS = multiprocessing.get_context("spawn")


def hill(params: dict[str, Any]) -> float:
    return -((params["x"] - 0.3) ** 2) - 0.01 * params["n"]


def tuner(function: Any = hill, max_evals: int = 4, **changes: Any) -> LlamaTune:
    return LlamaTune(SPACE, function, max_evals, **{"n_initial": 100, "progress": False, **changes})


def points(*fates: int) -> list[dict[str, Any]]:
    return [{"x": i / 10, "n": n} for i, n in enumerate(fates)]


# --- Processes of our own ----------------------------------------------------------------------------------------


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
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert gpu_ids("auto") == ["0", "1", "2"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(SettingsError, match="gpus='auto' found no CUDA device"):
        gpu_ids("auto")


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


# --- No two workers at the same place ----------------------------------------------------------------------------


def test_eight_workers_get_points_that_are_far_apart() -> None:
    """Also where the acquisition has one sharp peak, onto which each of them would go alone."""
    import torch  # the processes of other tests import this module, and need none of it

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
