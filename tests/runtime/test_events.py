"""Listeners: what they hear, in which order and thread, and that nothing they do ends a study."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from durable import everybody_falls_silent

from llamatune_torch import CallbackWarning, Listener, LlamaTune, SettingsError, Trial, TrialState, report


def train(params: dict[str, Any]) -> float:
    report(1, 0.25, 0.5)
    report(2, 0.75, 1.0)
    return float(params["x"])


def tuner(function: Any = train, max_evals: int = 2, **changes: Any) -> LlamaTune:
    return LlamaTune({"x": (0.0, 1.0)}, function, max_evals, **{"n_initial": 100, "progress": False, **changes})


class Diary(Listener):
    """Notes the number, the event, and the state and number of points of the trial at that moment."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, str, str, int]] = []
        self.threads: set[int] = set()

    def _note(self, search: LlamaTune, event: str, trial: Trial) -> None:
        assert search.study.trials[trial.number] == trial  # on record already
        self.lines.append((trial.number, event, str(trial.state), len(trial.curve)))
        self.threads.add(threading.get_ident())

    def on_start(self, search: LlamaTune, trial: Trial) -> None:
        self._note(search, "start", trial)

    def on_report(self, search: LlamaTune, trial: Trial) -> None:
        self._note(search, "report", trial)

    def on_finish(self, search: LlamaTune, trial: Trial) -> None:
        self._note(search, "finish", trial)

    def of(self, number: int) -> list[tuple[str, str, int]]:
        return [line for n, *line in self.lines if n == number]  # type: ignore[misc]


WHOLE = [["start", "running", 0], ["report", "running", 1], ["report", "running", 2], ["finish", "complete", 2]]


def test_a_listener_hears_of_all_events_in_this_thread() -> None:
    diary = Diary()
    tuner(callbacks=[diary]).optimize()
    assert diary.lines == [(number, *event) for number in (0, 1) for event in WHOLE]


@pytest.mark.parametrize("where", [{"n_workers": 2}, {"executor": None}], ids=["processes", "threads"])
def test_a_listener_hears_of_trials_elsewhere_in_the_thread_of_the_loop(where: dict[str, Any]) -> None:
    diary = Diary()
    with ThreadPoolExecutor(2) as pool:
        tuner(max_evals=3, callbacks=[diary]).optimize(**({"executor": pool} if "executor" in where else where))
    assert [diary.of(number) for number in range(3)] == [WHOLE] * 3
    assert diary.threads == {threading.get_ident()}


def test_the_processes_of_an_executor_bring_their_curves_with_the_outcome() -> None:
    diary = Diary()
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        tuner(max_evals=1, callbacks=[diary]).optimize(executor=pool)
    assert diary.of(0) == [WHOLE[0], WHOLE[-1]]


def test_a_trial_has_begun_when_its_start_is_heard_of_and_not_run() -> None:
    ran: list[float] = []

    class Looks(Listener):
        def on_start(self, search: LlamaTune, trial: Trial) -> None:
            assert len(ran) == trial.number

    tuner(lambda params: ran.append(params["x"]) or 1.0, callbacks=[Looks()]).optimize()
    assert len(ran) == 2


def test_a_retry_is_a_start_and_a_lost_trial_no_finish(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    tuner(storage=url).ask()
    everybody_falls_silent(url)
    diary = Diary()
    again = tuner(storage=url, max_evals=1, callbacks=[diary])
    again.optimize()
    assert [trial.state for trial in again.study.trials] == [TrialState.LOST, TrialState.COMPLETE]
    assert again.study.trials[1].retry_of == 0
    assert diary.lines == [(1, *event) for event in WHOLE]


class Lost:
    """An executor whose first trial is lost."""

    def __init__(self) -> None:
        self.calls = 0

    def submit(self, function: Callable[..., Any], /, *args: Any) -> Future[Any]:
        self.calls += 1
        future: Future[Any] = Future()
        if self.calls == 1:
            future.cancel()
        else:
            future.set_result(function(*args))
        return future


def test_a_trial_that_is_lost_where_it_ran_has_not_finished() -> None:
    diary = Diary()
    tuner(max_evals=1, callbacks=[diary]).optimize(executor=Lost(), n_workers=1)
    assert [(number, event) for number, event, *_ in diary.lines] == [(0, "start"), (1, "start"), (1, "finish")]


def test_a_failed_trial_has_finished() -> None:
    diary = Diary()

    def fails(params: dict[str, Any]) -> float:
        report(1, 0.5)
        raise ValueError

    optimizer = tuner(fails, 1, callbacks=[diary])
    optimizer.run(lambda trial: fails(dict(trial.params)))
    assert diary.of(0)[-1] == ["finish", "failed", 1]


@pytest.mark.parametrize("event", ["on_start", "on_report", "on_finish"])
@pytest.mark.parametrize("where", [{}, {"n_workers": 1}], ids=["here", "elsewhere"])
def test_an_exception_is_a_warning_and_the_study_and_other_listeners_go_on(event: str, where: dict[str, Any]) -> None:
    def breaks(search: LlamaTune, trial: Trial) -> None:
        raise RuntimeError("the plot has no axes")

    broken, diary = Listener(), Diary()
    setattr(broken, event, breaks)
    with pytest.warns(CallbackWarning, match=r"callback .*Listener.* raised RuntimeError\('the plot has no axes'\)"):
        tuner(max_evals=1, callbacks=[broken, diary]).optimize(**where)
    assert diary.of(0) == WHOLE


@pytest.mark.parametrize("event", ["on_start", "on_report", "on_finish"])
def test_a_listener_may_stop_the_search(event: str) -> None:
    stops = Listener()
    setattr(stops, event, lambda search, trial: search.stop())
    optimizer = tuner(max_evals=5, callbacks=[stops])
    optimizer.optimize()
    assert [trial.state for trial in optimizer.study.trials] == [TrialState.COMPLETE]


def test_a_listener_that_overrides_nothing_does_nothing() -> None:
    assert tuner(max_evals=1, callbacks=[Listener()]).optimize()


def test_a_function_hears_of_finished_trials_only() -> None:
    seen: list[tuple[int, str]] = []
    tuner(callbacks=[lambda search, trial: seen.append((trial.number, str(trial.state)))]).optimize()
    assert seen == [(0, "complete"), (1, "complete")]


def test_the_class_of_a_listener_is_refused_where_an_instance_is_meant() -> None:
    with pytest.raises(SettingsError, match="callbacks must hold instances of a Listener, but got the class Diary"):
        tuner(callbacks=[Diary])
