"""Each kind of store keeps the contract; trials that run again, and how many may start."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from contracts import SPACE, StoreContract
from strategies import make_trial

from llamatune_torch import Cause, Integer, LlamaTune, Real, SearchSpace, Study, Trial, TrialState
from llamatune_torch.storage.store import num_left, to_retry


def making(url: str | None) -> StoreContract.Make:
    """Builds optimizers, each on a study of its own, whose trials are from the Sobol sequence by default."""
    numbers = itertools.count()

    def make(space: Any = None, function: Any = None, **changes: Any) -> LlamaTune:
        place = {} if url is None else {"storage": url, "name": f"study {next(numbers)}"}
        return LlamaTune(space or SPACE, function, **{"n_initial": 100, "progress": False, **place, **changes})

    return make


class TestMemory(StoreContract):
    @pytest.fixture
    def make(self) -> StoreContract.Make:
        return making(None)


class TestSQLite(StoreContract):
    @pytest.fixture
    def make(self, sqlite_url: str) -> StoreContract.Make:
        return making(sqlite_url)


class TestPostgreSQL(StoreContract):
    @pytest.fixture
    def make(self, postgres_url: str) -> StoreContract.Make:
        return making(postgres_url)


LINE = SearchSpace({"x": Real(0, 1)})
RUNNING, COMPLETE, FAILED, LOST = TrialState.RUNNING, TrialState.COMPLETE, TrialState.FAILED, TrialState.LOST

# Ends of a trial, as ``record`` takes them.
RUNS = (RUNNING, None)
WORKED = (COMPLETE, None)
BROKE = (FAILED, Cause.ERROR)
STALLED = (LOST, Cause.SILENT)
STALLED_OUT = (FAILED, Cause.SILENT)  # once too often
KILLED = (FAILED, Cause.KILLED)
GIVEN_BACK = (LOST, Cause.ABANDONED)
OUTSIDE = (LOST, Cause.OUTSIDE)

End = tuple[TrialState, Cause | None]


def record(*ends: End | tuple[TrialState, Cause | None, int], x: float = 0.5) -> list[Trial]:
    """Trials with these ends; all are tries of trial 0, but those with a number of their own as a third entry."""
    trials = []
    for number, (state, cause, *own) in enumerate(ends):
        first = own[0] if own else 0
        trials.append(
            make_trial(
                number,
                {"x": x},
                0.5 if state is COMPLETE else None,
                state,
                "sobol" if first == number else "retry",
                cause=cause,
                retry_of=None if first == number else first,
            )
        )
    return trials


@pytest.mark.parametrize(
    ("ends", "retries", "due"),
    [
        ([], 2, False),
        ([RUNS], 2, False),
        ([WORKED], 2, False),
        ([BROKE], 2, False),
        ([GIVEN_BACK], 2, False),
        ([OUTSIDE], 2, False),
        # A stalled worker: up to ``retries`` times.
        ([STALLED], 0, False),
        ([STALLED], 1, True),
        ([STALLED, RUNS], 1, False),
        ([STALLED, STALLED], 1, False),
        ([STALLED, STALLED], 2, True),
        ([STALLED, STALLED_OUT], 1, False),
        ([STALLED, STALLED_OUT], 9, False),  # has come to its end, also for those who allow more
        ([STALLED_OUT], 9, False),
        # Somebody's SIGKILL: once, whatever ``retries`` says.
        ([KILLED], 0, True),
        ([KILLED, RUNS], 0, False),
        ([KILLED, KILLED], 0, False),
        ([KILLED, KILLED], 9, False),
        # Both in turn: each has its own limit.
        ([KILLED, STALLED], 0, False),
        ([KILLED, STALLED], 1, True),
        ([STALLED, KILLED], 1, True),
        ([STALLED, KILLED, STALLED], 1, False),
        ([STALLED, KILLED, STALLED], 2, True),
        ([STALLED, KILLED, KILLED], 9, False),
        ([KILLED, STALLED, STALLED_OUT], 9, False),
        # A retry that was given back is none.
        ([STALLED, GIVEN_BACK], 1, True),
        ([STALLED, GIVEN_BACK, STALLED], 1, False),
        ([KILLED, GIVEN_BACK], 0, True),
        ([KILLED, GIVEN_BACK, KILLED], 0, False),
        # One of them has come to an end of its own, in any order: a late result, for example.
        ([WORKED, STALLED], 2, False),
        ([STALLED, WORKED], 2, False),
        ([STALLED, BROKE], 2, False),
        ([KILLED, BROKE], 2, False),
        ([KILLED, WORKED], 2, False),
    ],
)
def test_what_runs_again(ends: list[End], retries: int, due: bool) -> None:
    trials = record(*ends)
    found = to_retry(trials, LINE, retries)
    assert [trial.number for trial in found] == ([len(trials)] if due else [])
    for trial in found:
        assert (trial.state, trial.origin, trial.retry_of) == (RUNNING, "retry", 0)
        assert (trial.params, trial.seed) == (trials[0].params, trials[0].seed)
        assert (trial.started, trial.worker, trial.cause) == (None, None, None)


def test_each_origin_is_judged_alone_and_numbers_go_on() -> None:
    trials = record(STALLED, (LOST, Cause.SILENT, 1), (COMPLETE, None, 2), KILLED, (FAILED, Cause.KILLED, 4))
    found = to_retry(trials, LINE, 1)
    assert [(trial.number, trial.retry_of) for trial in found] == [(5, 0), (6, 1), (7, 4)]
    assert [trial.retry_of for trial in to_retry(trials, LINE, 0)] == [4]


def test_conditions_that_no_longer_fit_the_space_do_not_run_again() -> None:
    space = SearchSpace({"method": ["full", "lora"], "rank": Integer(1, 8, when={"method": "lora"})})
    lora, full = {"method": "lora", "rank": 4}, {"method": "full"}
    trials = [make_trial(i, p, None, LOST, cause=Cause.SILENT) for i, p in enumerate((lora, full))]
    assert [trial.params for trial in to_retry(trials, space, 1)] == [lora, full]
    narrower = SearchSpace({"method": ["full", "lora"], "rank": Integer(1, 2, when={"method": "lora"})})
    assert [trial.params for trial in to_retry(trials, narrower, 1)] == [full]
    other = SearchSpace({"method": ["full", "lora"], "rank": Integer(1, 8, when={"method": "full"})})
    assert to_retry(trials, other, 1) == []
    assert to_retry(record(KILLED, x=2.0), LINE) == []


def test_an_added_trial_does_not_run_again() -> None:
    assert to_retry([make_trial(0, {"x": 0.5}, None, FAILED, "added", cause=Cause.KILLED)], LINE, 2) == []


@pytest.mark.parametrize(
    ("ends", "retries", "left"),
    [
        ([], 2, 5),
        ([RUNS], 2, 4),
        ([WORKED], 2, 4),
        ([BROKE], 2, 4),
        ([GIVEN_BACK], 2, 5),
        ([OUTSIDE], 2, 4),
        ([STALLED], 0, 5),
        ([STALLED], 1, 5),  # what runs again has not been counted yet
        ([STALLED, RUNS], 1, 4),
        ([STALLED, WORKED], 1, 4),
        ([WORKED, WORKED], 1, 4),  # a late result and its retry count once
        ([STALLED, STALLED_OUT], 1, 4),
        ([KILLED], 0, 5),  # counted, and its retry is free
        ([KILLED, RUNS], 0, 4),
        ([KILLED, KILLED], 0, 4),
        ([KILLED, STALLED], 0, 4),
        ([KILLED, STALLED], 1, 5),
        ([KILLED, GIVEN_BACK], 0, 5),
    ],
)
def test_how_many_may_start(ends: list[End], retries: int, left: int) -> None:
    study = Study(LINE, trials=tuple(record(*ends)))
    assert num_left(study, 5, to_retry(study.trials, LINE, retries)) == left


def test_a_batch_that_takes_only_some_of_what_is_due_gets_only_their_share() -> None:
    study = Study(LINE, trials=tuple(record(KILLED, (FAILED, Cause.KILLED, 1))))
    due = to_retry(study.trials, LINE)
    assert [num_left(study, 2, due[:n]) for n in range(3)] == [0, 1, 2]
