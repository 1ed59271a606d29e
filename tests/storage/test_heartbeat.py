"""Workers that fall silent: whose trials run again, for how long, and what comes late."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from durable import (
    SPACE,
    everybody_falls_silent,
    execute,
    fall_silent,
    hill,
    locked,
    states,
    store_of,
    tuner,
    unsaved,
)

from llamatune_torch import (
    BudgetSpentError,
    Cause,
    Integer,
    LlamaTune,
    Outcome,
    Real,
    StorageError,
    TrialState,
    TrialStateError,
)
from llamatune_torch.storage import database, heartbeat
from llamatune_torch.storage.reader import Reader


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
    assert (lost.state, lost.cause) == (TrialState.LOST, Cause.SILENT)
    assert lost.error is not None
    assert lost.error.startswith(f"no sign of life of worker {trial.worker} for 1")
    assert f"trial 0 is lost: {lost.error} (grace: 120 s)" in caplog.text
    assert (again.number, again.origin, again.retry_of) == (3, "retry", 0)
    assert (again.params, again.seed) == (trial.params, trial.seed)
    assert again.worker == store_of(alive).worker != trial.worker
    assert alive.ask().origin == "sobol"  # once is enough
    assert alive.study.spent == 4


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
    assert (last.cause, last.params) == (Cause.SILENT, mine.study.trials[0].params)
    assert last.error is not None
    assert last.error.startswith(f"no sign of life of worker {last.worker} for 1")
    assert last.error.endswith(f" s; workers silenced by these parameters: {retries + 1}")
    assert f"trial {retries} has failed: {last.error} (grace: 120 s)" in caplog.text
    assert mine.study.failures_by_reason() == {"worker silent": 1}
    assert mine.study.spent == 2
    with pytest.raises(BudgetSpentError):
        mine.ask()
    tuner(url, retries=10, max_evals=3).ask()  # what has failed does not run again, whoever asks
    assert [trial.first for trial in tuner(url).study.trials[retries:]] == [0, retries + 1, retries + 2]


def test_parameters_that_were_killed_once_and_silence_each_worker_have_failed_too(url: str) -> None:
    mine = tuner(url, retries=1)
    mine.tell(mine.ask(), Outcome.failure("killed", cause=Cause.KILLED))
    for number in (1, 2):
        dead = tuner(url, retries=1)
        assert (dead.ask().number, dead.study.trials[-1].retry_of) == (number, 0)
        fall_silent(url, dead)
    assert mine.ask().origin == "sobol"
    assert states(mine.study) == ["failed", "lost", "failed", "running"]
    assert [trial.cause for trial in mine.study.trials] == [Cause.KILLED, Cause.SILENT, Cause.SILENT, None]
    assert mine.study.spent == 2


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
    assert store_of(other).session.refresh().trials[0] == told
    assert other.study.spent == 2
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
    assert other.study.spent == 2
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
    worker = Reader(url).look().workers[trial.worker or ""]
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


def set_clock(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """The clock of the machine, which is SQLite's, is set by so many seconds."""
    clock = f"(julianday('now') - 2440587.5) * 86400.0 + {seconds}"
    monkeypatch.setitem(database.CLOCKS, "sqlite", clock)  # type: ignore[arg-type]


def test_a_machine_that_wakes_up_loses_nothing(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(heartbeat, "LOOKS_APART", 2.0)
    one, two = tuner(sqlite_url, grace=2.0), tuner(sqlite_url, grace=2.0)
    trials = [one.ask(), two.ask()]
    set_clock(monkeypatch, 8 * 3600)
    deadline = time.monotonic() + 2.5  # some beats
    while time.monotonic() < deadline:
        one.ask()
        time.sleep(0.1)
    assert [trial.state for trial in one.study.trials if trial.worker == trials[1].worker] == [TrialState.RUNNING]
    assert "no sign of life of worker" not in caplog.text
    assert two.tell(trials[1], 0.5).state is TrialState.COMPLETE


def test_a_silence_is_believed_at_the_second_look(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "LOOKS_APART", 2.0)
    dead, alive = tuner(url, grace=2.0), tuner(url, grace=2.0)
    dead.ask()
    store_of(dead)._heartbeat.numbers.clear()
    fall_silent(url, dead)
    assert alive.ask().origin == "sobol"
    time.sleep(1.1)
    assert alive.ask().retry_of == 0


def test_the_last_worker_waits_for_its_second_look(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "LOOKS_APART", 2.0)
    dead = tuner(sqlite_url, max_evals=1, grace=2.0)
    dead.ask()
    store_of(dead)._heartbeat.numbers.clear()
    fall_silent(sqlite_url, dead)
    last = tuner(sqlite_url, hill, max_evals=1, grace=2.0)
    last.optimize()
    assert states(last.study) == ["lost", "complete"]


def test_a_sign_of_life_in_the_future_is_none(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dead, alive = tuner(sqlite_url), tuner(sqlite_url)
    dead.ask()
    store_of(dead)._heartbeat.numbers.clear()
    set_clock(monkeypatch, -7200)
    assert alive.ask().retry_of == 0
    assert "no sign of life of worker" in caplog.text
    assert "since the clock was set back, by 7200 s or more" in caplog.text


def test_a_lease_from_before_the_clock_was_set_back_keeps_nobody_waiting(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuner(sqlite_url)
    execute(sqlite_url, "UPDATE llamatune_studies SET lease_owner = 'dead', lease_until = 1e12")
    start = time.monotonic()
    tuner(sqlite_url).ask()
    assert time.monotonic() - start < 60
