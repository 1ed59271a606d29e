"""Nothing lost: durable studies, shared by many, through crashes and bad luck. Real files, real processes."""

from __future__ import annotations

import json
import logging
import math
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from llamatune_torch import (
    BudgetSpentError,
    Categorical,
    Integer,
    LlamaTune,
    Outcome,
    Real,
    SchemaError,
    SettingsError,
    SpaceExhaustedError,
    StorageError,
    StorageWarning,
    Study,
    StudyMismatchError,
    Trial,
    TrialState,
    TrialStateError,
)
from llamatune_torch.runtime import claim, schema, shared, storage
from llamatune_torch.runtime.opening import read_study
from llamatune_torch.runtime.records import read_trial
from llamatune_torch.runtime.stored import StoredStudy
from llamatune_torch.study import OUTSIDE, SILENT

SPACE: dict[str, Any] = {"x": Real(-1, 1), "n": Integer(1, 8)}
HERE = Path(__file__).parent
POSIX = pytest.mark.skipif(os.name != "posix", reason="forks and sends signals")


def hill(params: dict[str, Any]) -> float:
    return -((params["x"] - 0.3) ** 2) - 0.01 * params["n"]


def tuner(url: str, function: Callable[[dict[str, Any]], Any] | None = None, **changes: Any) -> LlamaTune:
    """By default all trials are from the Sobol sequence: no fits, so it costs nothing."""
    defaults = {"n_initial": 100, "progress": False, "storage": url, "name": "s"}
    return LlamaTune(changes.pop("space", SPACE), function, **{**defaults, **changes})


def store_of(optimizer: LlamaTune) -> StoredStudy:
    assert isinstance(optimizer._store, StoredStudy)
    return optimizer._store


def states(study: Study) -> list[str]:
    return [trial.state.value for trial in study.trials]


def what(trials: Sequence[Trial]) -> list[tuple[Any, ...]]:
    return [(trial.params, trial.seed, trial.origin, trial.value) for trial in trials]


def execute(url: str, statement: str, **values: Any) -> None:
    """SQL past the package, as a test of it needs it."""
    database = storage.Database(url)
    database.write(lambda transaction: transaction.run(statement, **values))


def fall_silent(url: str, optimizer: LlamaTune, seconds: float = 1000.0) -> None:
    """As if the optimizer's process had given no sign of life for so long."""
    worker = store_of(optimizer).worker
    statement = "UPDATE llamatune_workers SET heartbeat = heartbeat - :seconds WHERE id = :id"
    execute(url, statement, seconds=seconds, id=worker)


def everybody_falls_silent(url: str) -> None:
    execute(url, "UPDATE llamatune_workers SET heartbeat = heartbeat - 1000")


# --- Resuming ----------------------------------------------------------------------------------------------------


def test_a_resumed_study_does_what_is_left_and_goes_on_as_one_long_run(url: str) -> None:
    whole = LlamaTune(SPACE, hill, 9, n_initial=4, seed=3, progress=False)
    whole.optimize()
    for max_evals in (2, 5, 9):  # within the Sobol sequence, and after the surrogate has taken over
        part = tuner(url, hill, max_evals=max_evals, n_initial=4, seed=3)
        part.optimize()
        assert len(part.study.trials) == max_evals
    assert what(part.study.trials) == what(whole.study.trials)
    assert part.study == tuner(url, n_initial=4).study
    again = tuner(url, lambda params: pytest.fail("nothing is left to do"), max_evals=9)
    assert again.optimize() == (whole.study.best_params, whole.study.best_value)


def test_the_record_comes_back_as_it_was(url: str) -> None:
    first = tuner(url)
    trial = first.ask()
    first.report(trial, 1, 0.5, 0.25)
    first.tell(trial, Outcome(0.5, outcomes={"gb": 7.5}, cost=3.5, notes={"value": "best"}))
    first.tell(first.ask(), Outcome.failure("out of memory", "Traceback: \x00 \ud800 'quoted' naïve"))
    first.abandon(first.ask(), "taken away")
    first.add_trial({"x": 0.1 + 0.2, "n": 1}, math.pi)
    first.report(first.ask(), 10, math.nan)
    again = tuner(url).study
    assert list(again.trials[:4]) == list(first.study.trials[:4])
    assert repr(again) == repr(first.study)  # nan is not equal to itself
    study, settings = read_study(url, "s")
    assert repr(study) == repr(first.study)
    assert (settings["seed"], settings["n_initial"], settings["max_evals"]) == (0, 100, 50)


def test_the_new_settings_count_and_the_seed_stays_unless_given(url: str) -> None:
    assert tuner(url, seed=7).settings.seed == 7
    again = tuner(url, acquisition="ucb")
    assert (again.settings.seed, again.settings.acquisition) == (7, "ucb")
    assert tuner(url, seed=8).settings.seed == 8
    assert tuner(url).settings.seed == 8
    assert LlamaTune(SPACE).settings.seed == 0


def test_initial_points_are_kept_and_new_ones_come_behind(url: str) -> None:
    tuner(url, initial_points=[{"x": 0.5, "n": 1}, {"x": 0.25, "n": 2}]).ask()
    again = tuner(url, initial_points=[{"x": 0.25, "n": 2}, {"x": 0.75, "n": 3}])
    assert [trial.params["x"] for trial in again.ask(2)] == [0.25, 0.75]
    assert len(again.study.initial_points) == 3


def test_studies_of_other_names_are_apart(url: str) -> None:
    tuner(url, name="one").ask()
    other = tuner(url, name="two", space={"y": (0.0, 1.0)}, direction="minimize")
    assert other.ask().number == 0
    with pytest.raises(StorageError, match=r"has no study 'three', only \['one', 'two'\]"):
        read_study(url, "three")


def test_looking_at_a_file_that_is_not_there_does_not_make_it(sqlite_url: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"there is no .*study\.db"):
        read_study(sqlite_url, "s")
    assert not list(tmp_path.iterdir())


# --- Opening with another search ---------------------------------------------------------------------------------


def test_another_search_is_an_error_that_shows_the_difference(url: str) -> None:
    tuner(url, metric="accuracy").ask()
    with pytest.raises(StudyMismatchError) as caught:
        tuner(url, direction="minimize", metric="loss", space={**SPACE, "x": Real(-1, 2), "c": ["a"]}, extend=True)
    message = str(caught.value)
    assert "study 's' in " in message
    assert "parameters: stored ['x', 'n'], given ['x', 'n', 'c']" in message
    assert "x: stored Real(low=-1, high=1, prior='uniform'), given Real(low=-1, high=2, prior='uniform')" in message
    assert "direction: stored 'maximize', given 'minimize'" in message
    assert "metric: stored 'accuracy', given 'loss'" in message
    assert "extend=True" not in message  # it would not help
    assert len(tuner(url, metric="accuracy").study.trials) == 1  # as it was


@pytest.mark.parametrize(
    "changes", [{"direction": "minimize"}, {"metric": "loss"}, {"space": {"x": Real(-1, 1), "n": Integer(1, 9)}}]
)
def test_each_difference_alone_is_one(sqlite_url: str, changes: dict[str, Any]) -> None:
    tuner(sqlite_url)
    with pytest.raises(StudyMismatchError):
        tuner(sqlite_url, **changes)


def test_extending_keeps_old_trials_where_they_fit_and_counts_all(url: str) -> None:
    space = {"x": Real(0.0, 1.0), "c": Categorical(["a", "b"])}
    old = tuner(url, space=space, metric="m")
    for x, c in ((0.25, "a"), (0.75, "b")):
        old.tell(old.ask(), 1.0 - x)
        old.add_trial({"x": x, "c": c}, x)
    wider = {"x": Real(0.5, 2.0), "c": Categorical(["a", "b", "c"])}
    with pytest.raises(StudyMismatchError, match="extend=True accepts that, and uses the old trials that still fit"):
        tuner(url, space=wider, metric="m")
    new = tuner(url, space=wider, metric="m", extend=True, max_evals=4, function=lambda params: params["x"])
    for before, now in zip(old.study.trials, new.study.trials, strict=True):
        if before.params["x"] >= 0.5:
            assert now == before
        else:
            assert (now.state, now.reason) == (TrialState.LOST, OUTSIDE)
            assert now.error == f"parameter 'x' must lie in [0.5, 2.0], but got {before.params['x']}"
            assert (now.value, now.params) == (before.value, before.params)
    assert {t.reason for t in new.study.trials} == {None, OUTSIDE}
    new.optimize()  # two of four were done, whether they fit or not
    assert sum(trial.origin == "sobol" for trial in new.study.trials) == 4
    assert read_study(url, "s")[0].space == new.study.space
    # The record itself has not changed.
    back = tuner(url, space={"x": Real(0.0, 2.0), "c": ["a", "b", "c"]}, metric="m", extend=True)
    assert back.study.trials[:4] == old.study.trials


def test_a_search_that_was_extended_meanwhile_goes_on(url: str) -> None:
    old = tuner(url)
    trial = old.ask()
    new = tuner(url, space={"x": Real(2.0, 3.0), "n": Integer(1, 8)}, extend=True)
    assert new.study.trials[0].reason == OUTSIDE
    strange = new.ask()
    assert old.tell(trial, 0.5).state is TrialState.COMPLETE
    assert old.study.trials[1].reason == OUTSIDE
    assert new.tell(strange, 1.0).value == 1.0
    assert new.study.best_value == 1.0
    assert old.study.best_value == 0.5


def test_the_metric_that_a_first_trial_teaches_is_kept(url: str) -> None:
    first = tuner(url, metric=None)
    trial = first.ask()
    first.settle_metric("eval_loss", "minimize")
    first.tell(trial, 0.5)
    again = tuner(url, metric=None)
    assert (again.study.metric, again.study.direction) == ("eval_loss", "minimize")
    again.settle_metric("eval_loss", "minimize")
    with pytest.raises(StudyMismatchError, match="metric: stored 'eval_loss', given 'eval_f1'"):
        again.settle_metric("eval_f1", "minimize")
    with pytest.raises(StudyMismatchError, match="direction: stored 'minimize', given 'maximize'"):
        tuner(url, metric="eval_loss")


# --- Many processes: here, several objects that know nothing of each other ---------------------------------------


def test_everybody_sees_what_others_have_asked_for_and_found(url: str) -> None:
    tuners = [tuner(url, n_initial=3) for _ in range(3)]
    alone = LlamaTune(SPACE, n_initial=3)
    for i in range(6):
        mine, expected = tuners[i % 3].ask(), alone.ask()
        assert (mine.number, mine.params, mine.origin) == (expected.number, expected.params, expected.origin)
        if i > 2:  # told by another than the one who asked
            tuners[(i + 1) % 3].tell(i - 3, hill(tuners[i % 3].study.trials[i - 3].params))
            alone.tell(i - 3, hill(alone.study.trials[i - 3].params))


def test_the_budget_is_the_total_of_all(url: str) -> None:
    one, two = tuner(url, max_evals=3), tuner(url, max_evals=3)
    one.add_trial({"x": 0.5, "n": 1}, 0.5)
    first, second = one.ask(2)
    with pytest.raises(BudgetSpentError, match="max_evals=3 trials of study 's' has only 1 left, but 2 were asked for"):
        two.ask(2)
    one.abandon(first, "interrupted")
    assert [trial.number for trial in two.ask(2)] == [3, 4]
    with pytest.raises(BudgetSpentError, match="max_evals=3 trials of study 's' is used up; 3 of them are running"):
        one.ask()
    one.tell(second, math.nan)
    with pytest.raises(BudgetSpentError, match="used up; 2 of them are running"):
        two.ask()
    assert tuner(url, max_evals=4).ask().number == 5


def test_a_load_reads_only_what_has_changed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = tuner(url), tuner(url)
    for _ in range(20):
        one.tell(one.ask(), 0.5)
    two.ask()
    read: list[int] = []

    def counting(row: Mapping[str, Any], *space: Any) -> Trial:
        read.append(row["number"])
        return read_trial(row, *space)

    monkeypatch.setattr(claim, "read_trial", counting)
    two.ask()
    assert read == []
    one.tell(one.ask(), 0.5)
    read.clear()
    two.ask()
    assert read == [22]


def test_a_suggestion_is_computed_outside_of_any_transaction_and_refused_if_others_were_quicker(url: str) -> None:
    slow, quick = tuner(url), tuner(url)
    original, seen = slow._choose, []

    def choose(study: Study, n: int) -> Any:
        seen.append(len(study.trials))
        if len(seen) == 1:
            store_of(quick).settle("value", "maximize")  # a write does not have to wait
            execute(url, "UPDATE llamatune_studies SET asking_until = 0")  # as after a very long suggestion
            quick.ask()
        return original(study, n)

    slow._choose = choose  # type: ignore[method-assign]
    trial = slow.ask()
    assert seen == [0, 1]
    assert trial.number == 1
    assert trial.params != quick.study.trials[0].params


def test_others_wait_for_a_suggestion_under_way_but_not_for_a_dead_process(url: str) -> None:
    one, two = tuner(url), tuner(url)
    original = one._choose
    waited: list[float] = []

    def choose(study: Study, n: int) -> Any:
        if not waited:
            start = time.monotonic()
            trial = two.ask()  # one is "dead" from here: it would never come back
            waited.append(time.monotonic() - start)
            assert trial.number == 0
        return original(study, n)

    one._choose = choose  # type: ignore[method-assign]
    assert one.ask().number == 1
    assert 0.2 <= waited[0] < 5


def test_a_suggestion_that_fails_leaves_nobody_waiting(url: str) -> None:
    finite = {"c": ["a", "b"]}
    one, two = tuner(url, space=finite), tuner(url, space=finite)
    one.ask(2)
    with pytest.raises(SpaceExhaustedError):
        one.ask()
    rows = storage.Database(url).read(lambda transaction: transaction.rows("SELECT asking FROM llamatune_studies"))
    assert rows == [{"asking": None}]
    with pytest.raises(SpaceExhaustedError):
        two.ask()


# --- Workers that fall silent ------------------------------------------------------------------------------------


def test_a_silent_workers_trial_is_lost_and_its_parameters_run_again(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    dead, alive = tuner(url), tuner(url)
    trial = dead.ask()
    assert alive.ask().number == 1
    fall_silent(url, dead, 119)
    assert alive.ask().origin == "sobol"  # within its grace
    fall_silent(url, dead, 10)
    again = alive.ask()
    lost = alive.study.trials[0]
    assert (lost.state, lost.reason) == (TrialState.LOST, SILENT)
    assert lost.error is not None
    assert lost.error.startswith(f"no sign of life of worker {trial.worker} for 1")
    assert f"trial 0 is lost: {lost.error} (grace: 120 s)" in caplog.text
    assert (again.number, again.origin, again.retry_of) == (3, "retry", 0)
    assert (again.params, again.seed) == (trial.params, trial.seed)
    assert again.worker == store_of(alive).worker != trial.worker
    assert alive.ask().origin == "sobol"  # once is enough
    assert alive.study.num_counted == 4


def test_parameters_run_again_at_most_retries_times(url: str) -> None:
    first = tuner(url, retries=2).ask()
    seen = []
    for _ in range(4):
        everybody_falls_silent(url)
        mine = tuner(url, retries=2)
        seen.append(mine.ask())
    assert [trial.origin for trial in seen] == ["retry", "retry", "sobol", "retry"]  # the last of another trial
    assert [trial.retry_of for trial in seen] == [0, 0, None, 3]
    assert [trial.params == first.params for trial in seen] == [True, True, False, False]


@pytest.mark.parametrize("retries", [0, 2])
def test_parameters_that_silence_each_worker_have_failed_and_count_once(
    url: str, retries: int, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(retries + 1):
        trial = tuner(url, retries=retries).ask()
        assert (trial.number, trial.first) == (number, 0)
        everybody_falls_silent(url)
    mine = tuner(url, retries=retries, max_evals=2)
    assert mine.ask().origin == "sobol"
    last = mine.study.trials[retries]
    assert states(mine.study) == ["lost"] * retries + ["failed", "running"]
    assert (last.reason, last.params) == (SILENT, mine.study.trials[0].params)
    assert last.error is not None
    assert last.error.startswith(f"no sign of life of worker {last.worker} for 1")
    assert last.error.endswith(f" s; workers silenced by these parameters: {retries + 1}")
    assert f"trial {retries} has failed: {last.error} (grace: 120 s)" in caplog.text
    assert mine.study.failures_by_reason() == {SILENT: 1}
    assert mine.study.num_counted == 2
    with pytest.raises(BudgetSpentError):
        mine.ask()
    tuner(url, retries=10, max_evals=3).ask()  # what has failed does not run again, whoever asks
    assert [trial.first for trial in tuner(url).study.trials[retries:]] == [0, retries + 1, retries + 2]


@pytest.mark.parametrize("late", [Outcome(0.75), Outcome.failure("out of memory")])
def test_a_late_result_takes_the_place_of_a_silent_failure(url: str, late: Outcome) -> None:
    paused, other = tuner(url, retries=0, max_evals=2), tuner(url, retries=0, max_evals=2)
    trial = paused.ask()
    fall_silent(url, paused)
    other.tell(other.ask(), 0.5)
    assert states(other.study) == ["failed", "complete"]
    assert paused.report(trial, 1, 0.25).state is TrialState.FAILED
    told = paused.tell(trial, late)
    assert (told.value, told.reason, told.error) == (late.value, late.reason, late.error)
    assert told.curve.values == (0.25,)
    assert store_of(other).refresh().trials[0] == told
    assert other.study.num_counted == 2
    with pytest.raises(BudgetSpentError):
        other.ask()
    with pytest.raises(TrialStateError, match="trial 0 has finished"):
        paused.tell(trial, 0.9)


def test_a_late_result_that_could_not_be_written_finds_its_silent_failure(
    sqlite_url: str, tmp_path: Path, impatient: None
) -> None:
    paused = tuner(sqlite_url, retries=0)
    trial = paused.ask()
    fall_silent(sqlite_url, paused)
    with locked(tmp_path / "study.db"), pytest.raises(StorageError):
        paused.tell(trial, 0.75)
    kept = unsaved(tmp_path)
    aside = [path.rename(path.with_name("aside")) for path in kept]
    assert tuner(sqlite_url, retries=0).ask().number == 1
    assert states(tuner(sqlite_url).study) == ["failed", "running"]
    aside[0].rename(kept[0])
    assert tuner(sqlite_url).study.trials[0].value == 0.75


def test_parameters_that_have_worked_are_not_blamed_for_a_silence(url: str) -> None:
    paused, dead = tuner(url, retries=1), tuner(url, retries=1)
    trial = paused.ask()
    fall_silent(url, paused)
    assert dead.ask().retry_of == 0
    paused.tell(trial, 0.75)
    fall_silent(url, dead)
    mine = tuner(url, retries=1)
    assert mine.ask().origin == "sobol"
    assert states(mine.study) == ["complete", "lost", "running"]


def test_the_search_steers_away_from_parameters_that_silence_their_workers(url: str) -> None:
    mine, told = tuner(url, n_initial=4, retries=0), LlamaTune(SPACE, n_initial=4)
    for _ in range(5):
        trial = mine.ask()
        assert told.ask().params == trial.params
        mine.tell(trial, hill(trial.params))
        told.tell(trial.number, hill(trial.params))
    dead = tuner(url, n_initial=4, retries=0)
    assert dead.ask().params == told.ask().params
    fall_silent(url, dead)
    told.tell(5, Outcome.failure("out of memory"))
    assert mine.ask().params == told.ask().params


def test_a_batch_takes_what_is_due_first_and_knows_of_it(url: str) -> None:
    dead, alive = tuner(url), tuner(url)
    lost = dead.ask(2)
    fall_silent(url, dead)
    batch = alive.ask(3)
    assert [trial.origin for trial in batch] == ["retry", "retry", "sobol"]
    assert [trial.params for trial in batch[:2]] == [trial.params for trial in lost]
    assert [trial.number for trial in batch] == [2, 3, 4]
    assert [trial.number for trial in alive.study.pending] == [2, 3, 4]


def test_two_that_ask_at_once_do_not_both_run_a_lost_trial(url: str) -> None:
    dead, one, two = tuner(url), tuner(url), tuner(url)
    dead.ask()
    fall_silent(url, dead)
    assert [one.ask().origin, two.ask().origin] == ["retry", "sobol"]


def test_a_retry_that_was_given_back_is_due_again(url: str) -> None:
    dead, alive = tuner(url, retries=1), tuner(url, retries=1)
    dead.ask()
    fall_silent(url, dead)
    alive.abandon(alive.ask(), "interrupted")
    assert alive.ask().retry_of == 0


@pytest.mark.parametrize("when", ["before the retry", "during the retry", "after the retry"])
def test_a_late_result_is_recorded_and_counts_once(url: str, when: str) -> None:
    paused, other = tuner(url, max_evals=2), tuner(url, max_evals=2)
    trial = paused.ask()
    running = other.ask()
    fall_silent(url, paused)
    if when == "before the retry":
        with pytest.raises(BudgetSpentError):  # a batch, for which there is no room: but the loss is noticed
            other.ask(3)
        assert other.study.trials[0].state is TrialState.LOST
        retry = None
    else:
        retry = other.ask()
    if when == "after the retry":
        assert retry is not None
        other.tell(retry, 0.5)
    assert paused.report(trial, 1, 0.25).state is TrialState.LOST
    late = paused.tell(trial, 0.75)
    assert (late.state, late.value, late.reason, late.error) == (TrialState.COMPLETE, 0.75, None, None)
    assert late.curve.values == (0.25,)
    other.tell(running, 0.125)
    if when == "during the retry":
        assert retry is not None
        other.tell(retry, 0.5)
    assert other.study.num_counted == 2
    assert sorted(t.value or 0 for t in other.study.completed) == [0.125, 0.75] if retry is None else [0.125, 0.5, 0.75]
    with pytest.raises(BudgetSpentError):
        other.ask()
    with pytest.raises(TrialStateError, match="trial 0 has finished"):
        paused.tell(trial, 0.9)


def test_an_abandoned_trial_takes_no_late_result(url: str) -> None:
    mine = tuner(url)
    trial = mine.ask()
    mine.abandon(trial, "interrupted")
    with pytest.raises(TrialStateError, match=r"trial 0 has finished \(lost\)"):
        mine.tell(trial, 0.5)


def test_what_no_longer_fits_the_space_is_not_run_again(url: str) -> None:
    dead = tuner(url)
    dead.ask()
    fall_silent(url, dead)
    elsewhere = tuner(url, space={"x": Real(2, 3), "n": Integer(1, 8)}, extend=True)
    assert elsewhere.ask().origin == "sobol"


def test_a_long_step_gives_signs_of_life(url: str) -> None:
    busy, other = tuner(url, grace=1.5), tuner(url, grace=1.5)
    trial = busy.ask()
    deadline = time.monotonic() + 3.0
    while time.monotonic() < deadline:  # a step that never leaves Python, and calls nothing of ours
        sum(range(1000))
    assert other.ask().origin == "sobol"
    (worker,) = [w for w in store_of(other).workers() if w.name == trial.worker]
    assert worker.silent_for < 1.5
    assert worker.pid == os.getpid()
    assert worker.host in worker.name


def test_the_heart_beats_only_while_something_runs_and_somebody_holds_it(sqlite_url: str) -> None:
    def hearts() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "llamatune-heartbeat"}

    before = hearts()  # those of other tests
    mine = tuner(sqlite_url, grace=0.2)
    assert not hearts() - before
    trial, other = mine.ask(2)
    (thread,) = hearts() - before
    mine.tell(trial, 0.5)
    time.sleep(0.2)
    assert thread.is_alive()
    mine.tell(other, 0.5)
    thread.join(10)
    assert not hearts() - before
    mine.ask()
    (thread,) = hearts() - before
    del mine
    thread.join(10)
    assert not hearts() - before


def test_clocks_of_machines_do_not_matter(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = tuner(url), tuner(url)
    trial = one.ask()
    now = time.time()
    for hours in (-5, 7):
        monkeypatch.setattr(time, "time", lambda hours=hours: now + hours * 3600)
        assert two.ask().origin == "sobol"
    finished = two.tell(trial, 0.5)
    assert finished.cost is not None
    assert 0 <= finished.cost < 60
    assert abs((trial.started or 0) - now) < 5


def test_the_last_worker_waits_for_a_sign_of_life_and_runs_a_dead_ones_trial(url: str) -> None:
    dead = tuner(url, max_evals=2, grace=1.0)
    lost = dead.ask()
    store_of(dead)._heartbeat.numbers.clear()  # it dies at once
    last = tuner(url, hill, max_evals=2, grace=1.0)
    last.optimize()
    assert [trial.origin for trial in last.study.trials] == ["sobol", "sobol", "retry"]
    assert last.study.trials[2].params == lost.params
    assert states(last.study) == ["lost", "complete", "complete"]


def test_the_last_worker_does_not_wait_for_a_living_one(url: str) -> None:
    busy = tuner(url, max_evals=2, grace=2.0)
    busy.ask()
    last = tuner(url, hill, max_evals=2, grace=60.0)
    start = time.monotonic()
    last.optimize()
    assert time.monotonic() - start < 10
    assert states(last.study) == ["running", "complete"]
    start = time.monotonic()
    with pytest.raises(BudgetSpentError):  # who owns the loop is not kept waiting
        last.ask()
    assert time.monotonic() - start < 2


def test_the_timeout_ends_the_wait_for_others(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llamatune_torch")
    dead = tuner(url, max_evals=2)
    dead.ask()
    store_of(dead)._heartbeat.numbers.clear()  # it dies at once
    last = tuner(url, hill, max_evals=2, grace=60.0, timeout=1.0)
    start = time.monotonic()
    last.optimize()
    assert 1.0 <= time.monotonic() - start < 5
    assert states(last.study) == ["running", "complete"]
    assert "waiting for a sign of life of 1 trials" in caplog.text
    assert "stopped: the timeout of 1 s has passed" in caplog.text
    assert "used up" not in caplog.text


def test_stop_ends_the_wait_for_others(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llamatune_torch")
    dead = tuner(url, max_evals=2)
    dead.ask()
    store_of(dead)._heartbeat.numbers.clear()
    last = tuner(url, hill, max_evals=2, grace=60.0)
    stopping = threading.Thread(target=lambda: (eventually(lambda: "waiting for a sign" in caplog.text), last.stop()))
    stopping.start()
    start = time.monotonic()
    last.optimize()
    assert time.monotonic() - start < 10
    stopping.join()
    assert states(last.study) == ["running", "complete"]


def eventually(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


# --- Writes that fail --------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite waits 50 ms for another writer, this package half a second for anything."""
    monkeypatch.setattr(storage, "BUSY_SECONDS", 0.05)
    monkeypatch.setattr(shared, "PATIENCE", 0.5)


@contextmanager
def locked(path: Path) -> Iterator[sqlite3.Connection]:
    """Somebody else writes and does not come to an end."""
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield connection


def unsaved(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if ".unsaved-" in path.name)


def test_a_write_that_fails_is_tried_again_and_kept_until_it_succeeds(
    sqlite_url: str, tmp_path: Path, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    mine = tuner(sqlite_url)
    store_of(mine).patience = 30.0
    trial = mine.ask()
    kept: list[list[Path]] = []
    with locked(tmp_path / "study.db") as connection:

        def release() -> None:
            eventually(lambda: bool(unsaved(tmp_path)))
            kept.append(unsaved(tmp_path))
            connection.execute("ROLLBACK")

        releasing = threading.Thread(target=release)
        releasing.start()
        finished = mine.tell(trial, 0.5)
        releasing.join()
    assert len(kept[0]) == 1  # while it was not sure to succeed
    assert unsaved(tmp_path) == []
    assert tuner(sqlite_url).study.trials == (finished,)
    assert "database is locked; trying again for up to 30 s" in caplog.text


def test_what_cannot_be_written_is_raised_with_the_value_and_picked_up_by_the_next_start(
    sqlite_url: str, tmp_path: Path, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "llamatune_torch")
    mine = tuner(sqlite_url)
    trial, failing = mine.ask(2)
    mine.report(trial, 1, 0.25)
    with locked(tmp_path / "study.db"):
        with pytest.raises(StorageError) as caught:
            mine.tell(trial, 0.1 + 0.2)
        with pytest.raises(StorageError, match="of trial 1 is failed: out of memory with "):
            mine.tell(failing, Outcome.failure("out of memory"))
        with pytest.raises(StorageError, match=r"The result of a trial to be added is value=0.75 with \{'x': 0.5"):
            mine.add_trial({"x": 0.5, "n": 2}, 0.75)
    message = str(caught.value)
    assert "study.db did not allow for 0.5 s the end of a trial to be written: database is locked" in message
    assert f"The result of trial 0 is value=0.30000000000000004 with {trial.params}" in message
    assert f"it is kept in {tmp_path}/study.db.unsaved-" in message
    assert len(unsaved(tmp_path)) == 3
    assert states(mine.study) == ["complete", "failed"]  # known here, so that nothing gives them back

    again = tuner(sqlite_url)
    assert unsaved(tmp_path) == []
    assert [t.value for t in again.study.trials] == [0.1 + 0.2, None, 0.75]
    assert [t.origin for t in again.study.trials] == ["sobol", "sobol", "added"]
    assert again.study.trials[0].curve.values == (0.25,)
    assert again.study.trials[1].reason == "out of memory"
    assert "picked up the result of trial 0, value=0.30000000000000004, from " in caplog.text
    assert len(tuner(sqlite_url).study.trials) == 3  # once


def test_the_same_process_picks_it_up_too(sqlite_url: str, tmp_path: Path, impatient: None) -> None:
    mine = tuner(sqlite_url, max_evals=2)
    trial = mine.ask()
    with locked(tmp_path / "study.db"), pytest.raises(StorageError):
        mine.tell(trial, 0.5)
    assert mine.ask().number == 1
    assert unsaved(tmp_path) == []
    assert [t.value for t in read_study(sqlite_url, "s")[0].completed] == [0.5]


def test_a_loop_that_ends_with_an_unwritten_result_does_not_give_it_back(
    sqlite_url: str, tmp_path: Path, impatient: None
) -> None:
    def evaluate(params: dict[str, Any]) -> float:
        if len(mine.study.trials) == 2:
            holding.append(sqlite3.connect(tmp_path / "study.db", isolation_level=None))
            holding[0].execute("BEGIN IMMEDIATE")
        return 0.25 * len(mine.study.trials)

    holding: list[sqlite3.Connection] = []
    mine = tuner(sqlite_url, evaluate, max_evals=3)
    with pytest.raises(StorageError, match=r"value=0\.5 "):
        mine.optimize()
    holding[0].close()
    again = tuner(sqlite_url, evaluate, max_evals=3)
    assert [trial.value for trial in again.study.trials] == [0.25, 0.5]


def test_a_kept_result_that_fits_nothing_any_more_is_refused_and_not_thrown_away(
    sqlite_url: str, tmp_path: Path, impatient: None
) -> None:
    mine, other = tuner(sqlite_url), tuner(sqlite_url)
    trial = mine.ask()
    with locked(tmp_path / "study.db"), pytest.raises(StorageError):
        mine.tell(trial, 0.5)
    other.tell(trial, 0.75)
    with pytest.warns(StorageWarning, match=r"refused has a result of no use \(value=0.5\): trial 0 has finished"):
        again = tuner(sqlite_url)
    assert again.study.best_value == 0.75
    assert [path.suffix for path in unsaved(tmp_path)] == [".refused"]
    tuner(sqlite_url)  # once is enough


def test_a_report_that_cannot_be_written_does_not_end_the_training(
    sqlite_url: str, tmp_path: Path, impatient: None
) -> None:
    mine = tuner(sqlite_url)
    trial = mine.ask()
    mine.report(trial, 1, 0.1)
    with locked(tmp_path / "study.db"):
        for step in (2, 3):
            with pytest.warns(StorageWarning, match="a report to be written: database is locked; it is kept until"):
                mine.report(trial, step, 0.1 * step)
    mine.report(trial, 4, 0.5)
    assert read_study(sqlite_url, "s")[0].trials[0].curve.steps == (1, 2, 3, 4)
    with locked(tmp_path / "study.db"), pytest.warns(StorageWarning):
        mine.report(trial, 5, 0.6)
    assert mine.tell(trial, 0.6).curve.steps == (1, 2, 3, 4, 5)


def full_disk_or_skip(folder: Path) -> None:
    """Mounts a file system of 1 MiB there."""
    if os.getuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small file system")
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    full_disk_or_skip(folder)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> Path:
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (65536, 512, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return filler


def test_a_full_disk(small_disk: Path, tmp_path: Path, impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    url = f"sqlite:///{small_disk}/study.db"
    mine = tuner(url)
    trials = mine.ask(2)
    filler = fill(small_disk)
    with pytest.warns(StorageWarning, match="a report to be written: database or disk is full"):
        mine.report(trials[0], 1, 0.5)
    with pytest.raises(StorageError, match=r"disk is full.*value=0\.75 .*kept in .*llamatune-\w+\.unsaved-"):
        mine.tell(trials[0], 0.75)
    with pytest.raises(StorageError, match="a kept result to be written: database or disk is full"):
        mine.ask()
    filler.unlink()
    again = tuner(url)
    assert again.study.best_value == 0.75
    assert again.study.best_trial.curve.values == (0.5,)
    assert again.tell(again.ask(), 1.0).state is TrialState.COMPLETE


def test_a_read_only_file(small_disk: Path) -> None:
    url = f"sqlite:///{small_disk}/study.db"
    tuner(url)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    start = time.monotonic()
    with pytest.raises(
        StorageError, match=r"study\.db did not allow to be opened: .*(readonly|read-only|unable to open)"
    ):
        tuner(url)
    assert time.monotonic() - start < 5  # nothing would change by waiting


def test_a_file_that_becomes_read_only(small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mine = tuner(f"sqlite:///{small_disk}/study.db")
    trial = mine.ask()
    store_of(mine)._heartbeat.numbers.clear()
    store_of(mine)._database._engine.dispose()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(StorageError, match=r"(readonly|read-only|unable to open).*value=0\.75 .*kept in "):
        mine.tell(trial, 0.75)
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    assert tuner(f"sqlite:///{small_disk}/study.db").study.best_value == 0.75


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=f"cannot be made: there is no folder {tmp_path}/nowhere"):
        tuner(f"sqlite:///{tmp_path}/nowhere/study.db")


def test_a_file_that_is_no_database(sqlite_url: str, tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("a diary\n" * 1000)
    with pytest.raises(SchemaError, match=r"study\.db is damaged, or no database at all: file is not a database"):
        tuner(sqlite_url)
    assert (tmp_path / "study.db").read_text().startswith("a diary")


def test_a_damaged_file(sqlite_url: str, tmp_path: Path) -> None:
    mine = tuner(sqlite_url)
    for trial in mine.ask(50):
        mine.tell(trial, 0.5)
    del mine  # which closes it, so that everything is in the one file
    path = tmp_path / "study.db"
    content = bytearray(path.read_bytes())
    content[4096 * 5 : 4096 * 7] = b"\xff" * 8192
    path.write_bytes(content)
    with pytest.raises(SchemaError, match=r"study\.db is damaged"):
        tuner(sqlite_url)


def test_a_database_of_something_else(sqlite_url: str, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "study.db")) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    with pytest.raises(SchemaError, match=r"is a database of something else: it has the tables \['recipes'\]"):
        tuner(sqlite_url)
    with closing(sqlite3.connect(tmp_path / "study.db")) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("recipes",)]


def test_a_database_of_a_newer_version(url: str) -> None:
    tuner(url).ask()
    execute(url, "UPDATE llamatune_schema SET version = 99")
    with pytest.raises(SchemaError, match=r"made by a newer version of llamatune-torch \(its schema is 99, this one"):
        tuner(url)


def test_a_study_of_version_1_goes_on(sqlite_url: str, tmp_path: Path) -> None:
    """A dump of a real file, made by the first version that stored any; it never changes."""
    with closing(sqlite3.connect(tmp_path / "study.db")) as connection:
        connection.executescript((HERE / "study-v1.sql").read_text())
    mine = LlamaTune(
        {
            "lr": Real(1e-5, 1e-2, prior="log-uniform"),
            "method": ["full", "lora"],
            "rank": Integer(1, 64, when={"method": "lora"}),
            "decay": Real(0.001, 0.1, special=[0.0]),
        },
        storage=sqlite_url,
        name="old",
        direction="minimize",
        metric="loss",
    )
    assert states(mine.study) == ["complete", "failed", "lost", "complete", "running"]
    assert mine.study.best_value == 0.30000000000000004
    assert mine.study.trials[0].curve.values == (0.5, math.inf)
    assert mine.settings.seed == 7
    assert mine.ask().number == 5


def test_older_databases_are_migrated_step_by_step(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tuner(url)
    before.tell(before.ask(), 0.5)
    newer = (
        *schema.MIGRATIONS,
        ("ALTER TABLE llamatune_studies ADD COLUMN owner TEXT", "UPDATE llamatune_studies SET owner = name"),
        ("ALTER TABLE llamatune_studies ADD COLUMN mood TEXT",),
    )
    monkeypatch.setattr(storage, "MIGRATIONS", newer)
    after = tuner(url)
    assert after.study.trials == before.study.trials
    rows = storage.Database(url).write(lambda t: t.rows("SELECT owner, mood FROM llamatune_studies"))
    assert rows == [{"owner": "s", "mood": None}]
    assert storage.Database(url).write(lambda t: t.rows("SELECT version FROM llamatune_schema")) == [{"version": 3}]
    tuner(url)  # is not migrated again


def test_a_migration_that_fails_leaves_the_older_version(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tuner(url).ask()
    broken = ("ALTER TABLE llamatune_studies ADD COLUMN owner TEXT", "UPDATE llamatune_nowhere SET a = 1")
    with monkeypatch.context() as patch:
        patch.setattr(storage, "MIGRATIONS", (*schema.MIGRATIONS, broken))
        with pytest.raises(StorageError, match="llamatune_nowhere"):
            tuner(url)
    assert tuner(url).ask().number == 1


# --- Connections that break --------------------------------------------------------------------------------------


def breaking_after(monkeypatch: pytest.MonkeyPatch, times: int) -> list[int]:
    """Transactions that come through, though they seem to fail: the connection breaks after the commit."""
    original, broken = storage.Database.write, [times]

    def write(self: storage.Database, work: Any, **how: bool) -> Any:
        result = original(self, work, **how)
        if broken[0]:
            broken[0] -= 1
            raise OperationalError("COMMIT", {}, Exception("server closed the connection unexpectedly"))
        return result

    monkeypatch.setattr(storage.Database, "write", write)
    return broken


def test_a_connection_that_breaks_after_the_commit_does_nothing_twice(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tuner(url)
    for times in (1, 2, 3):
        broken = breaking_after(monkeypatch, 0)
        broken[0] = times
        trial = mine.ask()
        broken[0] = times
        mine.report(trial, 1, 0.5)
        broken[0] = times
        mine.tell(trial, 0.25)
        broken[0] = times
        mine.add_trial({"x": 0.5, "n": times}, 0.5)
        broken[0] = 0
        monkeypatch.undo()
    study = tuner(url).study
    assert [(t.number, t.origin, t.value) for t in study.trials] == [
        (i, "added" if i % 2 else "sobol", 0.5 if i % 2 else 0.25) for i in range(6)
    ]
    assert all(len(trial.curve) == 1 for trial in study.trials[::2])
    assert study == mine.study


def test_what_an_interrupted_ask_has_started_is_given_back_or_handed_out(url: str) -> None:
    mine = tuner(url)
    mine.ask()
    store_of(mine)._heartbeat.numbers.clear()  # as if Ctrl-C had come right after the commit
    assert mine.ask().number == 0
    store_of(mine)._heartbeat.numbers.clear()
    assert [trial.number for trial in mine.ask(2)] == [1, 2]
    assert (mine.study.trials[0].state, mine.study.trials[0].reason) == (TrialState.LOST, "never begun")


def test_a_relative_path_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    mine = tuner("sqlite:///study.db", grace=1.0)
    trial = mine.ask()
    monkeypatch.chdir(tmp_path / "elsewhere")
    time.sleep(0.6)  # a sign of life has a connection of its own
    mine.tell(trial, 0.5)
    assert not list((tmp_path / "elsewhere").iterdir())
    assert (tmp_path / "study.db").exists()


def test_a_server_that_hangs_up_is_called_again(postgres_url: str) -> None:
    mine = tuner(postgres_url)
    trial = mine.ask()
    hang_up = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND usename = :name"
    name = postgres_url.split("/")[2].split("@")[0]
    database = storage.Database(postgres_url)
    for act in (lambda: mine.report(trial, 1, 0.5), lambda: mine.tell(trial, 0.75), mine.ask):
        database.write(lambda transaction: transaction.rows(hang_up, name=name))
        act()
    assert states(mine.study) == ["complete", "running"]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("gpt2.db", "storage must be a URL such as 'sqlite:///study.db' or .*, but got 'gpt2.db'"),
        ("mysql://localhost/x", "storage must be a URL .*, but got one of 'mysql'"),
        ("sqlite://", "storage must name a file, as in 'sqlite:///study.db', but got 'sqlite://'"),
        ("sqlite:///:memory:", "storage must name a file"),
        (7, "storage must be a URL .*, but got 7"),
    ],
)
def test_a_storage_that_is_none(url: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        LlamaTune(SPACE, storage=url)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grace": 0}, "grace must be a number of seconds > 0, but got 0"),
        ({"grace": math.inf}, "grace must be a number of seconds > 0, but got inf"),
        ({"retries": -1}, "retries must be an integer >= 0, but got -1"),
        ({"retries": 1.5}, "retries must be an integer >= 0, but got 1.5"),
        ({"name": ""}, "the name of a stored study must be a line of text, but got ''"),
        ({"name": "a\x00"}, "the name of a stored study must be a line of text"),
        ({"storage": None}, "name='s' needs a storage"),
    ],
)
def test_bad_knobs_are_refused_before_a_file_is_made(
    sqlite_url: str, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        tuner(sqlite_url, **changes)
    assert not list(tmp_path.iterdir())


def test_passwords_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "OPENING_PATIENCE", 0.2)
    with pytest.raises(
        StorageError, match=r"postgresql://me:\*\*\*@127.0.0.1:1/x\?connect_timeout=1 did not allow"
    ) as caught:
        storage.Database("postgresql://me:secret@127.0.0.1:1/x?connect_timeout=1")
    assert "secret" not in str(caught.value)


# --- Real processes ----------------------------------------------------------------------------------------------


class Nursery:
    """Workers that start in milliseconds; see ``nursery.py``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "nursery.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.count = 0
        assert self._line() == "ready"

    def start(self, *jobs: dict[str, Any]) -> tuple[int, list[Path]]:
        """Starts a tree of processes, one for each job; its process group, and the files for the results."""
        outs = []
        for _ in jobs:
            self.count += 1
            outs.append(self.folder / f"out{self.count}")
        assert self.process.stdin is not None
        ordered = [{**job, "out": str(out)} for job, out in zip(jobs, outs, strict=True)]
        self.process.stdin.write(json.dumps(ordered) + "\n")
        return int(self._line()), outs

    def results(self, group: int, outs: list[Path], seconds: float = 60.0) -> list[Any]:
        """What the jobs of a tree came to, once they have ended."""
        try:
            eventually(lambda: all(out.exists() for out in outs), seconds)
        finally:
            kill(group)
        results = [json.loads(out.read_text()) for out in outs]
        for result in results:
            assert "error" not in result, result["error"]
        return [result["done"] for result in results]

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


def kill(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    nursery = Nursery(tmp_path_factory.mktemp("nursery"))
    yield nursery
    nursery.close()


KILLS = int(os.environ.get("LLAMATUNE_KILLS", "50"))


@POSIX
def test_killed_with_all_its_processes_at_random_moments_nothing_is_lost(
    url: str, nursery: Nursery, tmp_path: Path
) -> None:
    """3 workers, 60 trials, 50 times ``kill -9``, starting again each time."""
    budget, chance, grace = 60, random.Random(0), 3.0
    log = tmp_path / "log"
    log.touch()
    job = {"job": "optimize", "url": url, "name": "s", "max_evals": budget, "log": str(log)}
    job |= {"grace": grace, "retries": 1000}
    killed = 0
    for kills in range(KILLS):
        # About as fast as the killing: quick trials while the study is behind, slow ones while it is ahead.
        behind = len(log.read_text().splitlines()) / budget < kills / KILLS
        group, outs = nursery.start(*[{**job, "seconds": 0.05 if behind else 0.4}] * 3)
        time.sleep(chance.uniform(0.05, 0.6))
        killed += not any(out.exists() for out in outs)
        kill(group)
    at_last, outs = nursery.start(*[{**job, "seconds": 0.05}] * 3)
    nursery.results(at_last, outs)

    study = read_study(url, "s")[0]
    assert killed > 0.8 * KILLS  # it was not over long before
    assert len(study.completed) == study.num_counted == budget
    assert [trial.number for trial in study.trials] == list(range(len(study.trials)))
    assert Counter(states(study)) == Counter(complete=budget, lost=len(study.trials) - budget)
    assert len(study.trials) > budget  # some were lost
    reported = [line.split() for line in log.read_text().splitlines()]
    assert len(reported) > budget / 2  # the others were killed after the commit, before this line
    for number, value in reported:
        assert study.trials[int(number)].value == float(value)
    for trial in study.completed:
        assert trial.value == hill(trial.params)
    for trial in study.in_state(TrialState.LOST):  # only those that ran when they were killed, and they ran again
        assert trial.reason == SILENT
        first = trial.number if trial.retry_of is None else trial.retry_of
        again = [t for t in study.trials if t.retry_of == first and t.number > trial.number]
        assert again
        assert again[-1].state is TrialState.COMPLETE
        assert {repr(t.params) for t in again} == {repr(trial.params)}


@POSIX
def test_eight_processes_of_fifty_trials(url: str, nursery: Nursery) -> None:
    job = {"job": "ask_and_tell", "url": url, "name": "s", "count": 50}
    results = nursery.results(*nursery.start(*[job] * 8), 120)
    numbers = [number for result in results for number in result["numbers"]]
    assert sorted(numbers) == list(range(400))
    study = read_study(url, "s")[0]
    assert len(study.completed) == 400
    assert len({repr(trial.params) for trial in study.trials}) == 400
    assert all(trial.value == hill(trial.params) for trial in study.trials)


@POSIX
def test_eight_processes_respect_the_budget_exactly(url: str, nursery: Nursery) -> None:
    job = {"job": "until_spent", "url": url, "name": "s", "max_evals": 37}
    results = nursery.results(*nursery.start(*[job] * 8), 60)
    numbers = [number for result in results for number in result["numbers"]]
    assert sorted(numbers) == list(range(37))


@POSIX
def test_two_workers_started_in_the_same_millisecond(url: str, nursery: Nursery) -> None:
    for i in range(5):
        when = time.time() + 0.3  # also the study itself is made by both at once
        one, two = nursery.results(*nursery.start(*[{"job": "ask_at", "url": url, "name": str(i), "when": when}] * 2))
        assert {one["number"], two["number"]} == {0, 1}
        assert one["params"] != two["params"]


@POSIX
def test_a_worker_paused_past_its_grace_and_continued(url: str, nursery: Nursery, tmp_path: Path) -> None:
    started = tmp_path / "started"
    job = {"job": "one_slow_trial", "url": url, "name": "s", "started": str(started), "seconds": 3.0, "grace": 1.0}
    group, outs = nursery.start(job)
    eventually(started.exists)
    os.killpg(group, signal.SIGSTOP)
    time.sleep(1.5)
    mine = tuner(url, max_evals=2, grace=1.0)
    retry = mine.ask()
    assert (retry.origin, retry.retry_of) == ("retry", 0)
    assert mine.study.trials[0].reason == SILENT
    os.killpg(group, signal.SIGCONT)
    assert nursery.results(group, outs) == [{"number": 0, "state": "complete"}]
    mine.tell(retry, 0.5)
    assert [trial.value for trial in mine.study.trials] == [0.75, 0.5]
    assert mine.study.trials[0].curve.values == (0.125,)
    assert mine.study.num_counted == 1
    assert mine.ask().number == 2
    with pytest.raises(BudgetSpentError):
        mine.ask()


@POSIX
def test_a_fork_does_not_share_connections(url: str, nursery: Nursery) -> None:
    result = nursery.results(*nursery.start({"job": "forked", "url": url, "name": "s"}))
    assert result == [{"code": 0, "curve": [0.25], "next": 2}]
