"""Studies in memory, and the copies that other ranks follow; ``test_store.py`` has the contract."""

from __future__ import annotations

import pytest
from strategies import make_study, make_trial

from llamatune_torch import (
    Cause,
    Curve,
    Outcome,
    Real,
    SettingsError,
    Study,
    StudyMismatchError,
    Trial,
    TrialState,
    TrialStateError,
)
from llamatune_torch.decisions import Decision, Start
from llamatune_torch.storage.memory import FollowerStore, MemoryStore

SPACE = {"x": Real(0, 1)}
RANK_0 = "host:1:abc"

PAUSED = Outcome(paused=True, curve=Curve((1.0,), (0.5,), (0.1,)))


def choose(study: Study, n: int, left: float) -> list[Decision]:
    return [Start({"x": 0.5}, "sobol")] * n


def running(worker: str) -> Study:
    """A study in which a worker runs one trial."""
    return make_study(SPACE).with_trial(make_trial(0, {"x": 0.5}, state=TrialState.RUNNING, worker=worker))


def test_there_is_nobody_else() -> None:
    store = MemoryStore(make_study(SPACE))
    assert store.worker is None
    (trial,) = store.start(1, choose, 0, 1)
    assert trial.worker is None
    assert not store.wait_for_others(1, lambda: pytest.fail("nothing to wait for"))


def test_a_trial_may_start_while_some_are_left_or_one_is_to_run_again() -> None:
    store = MemoryStore(make_study(SPACE))
    assert store.may_start(1)
    (trial,) = store.start(1, choose, 0, 1)
    assert not store.may_start(1)
    assert store.may_start(2)
    store.change(trial, lambda running, now: running.given_up(Cause.ABANDONED, "Ctrl-C", now))
    assert store.may_start(1)


def test_a_follower_starts_nothing() -> None:
    store = FollowerStore(make_study(SPACE), RANK_0)
    with pytest.raises(SettingsError, match="under torchrun only rank 0 asks for trials of a stored study"):
        store.start(1, choose, 0, 10)
    assert store.study.trials == ()


def test_a_follower_settles_the_metric_when_rank_0_can() -> None:
    store = FollowerStore(running(RANK_0), RANK_0)
    store.settle("eval_loss", "minimize")
    assert (store.study.metric, store.study.direction) == ("eval_loss", "minimize")
    store.settle("eval_loss", "minimize")


def test_a_follower_does_not_go_on_alone_when_rank_0_cannot_settle_the_metric() -> None:
    elsewhere = FollowerStore(running("host:2:def"), RANK_0)
    with pytest.raises(StudyMismatchError, match="the study of rank 0 has another metric or direction"):
        elsewhere.settle("eval_loss", "minimize")
    done = FollowerStore(make_study(SPACE, [({"x": 0.5}, 1.0)]), RANK_0)
    with pytest.raises(StudyMismatchError):
        done.settle("eval_f1", "minimize")
    done.settle("eval_f1", "maximize")  # "value" was no name
    with pytest.raises(StudyMismatchError):
        done.settle("eval_loss", "maximize")


def test_the_direction_stays_once_values_have_been_read() -> None:
    store = MemoryStore(make_study(SPACE, [({"x": 0.5}, 1.0)]))
    with pytest.raises(TrialStateError, match="the direction cannot become 'minimize' after a trial has completed"):
        store.settle("eval_loss", "minimize")
    started = Trial(0, {"x": 0.5}, 0, "sobol", started=0.0, until=0.1)
    store = MemoryStore(make_study(SPACE, []).with_trial(started).with_trial(started.paused_with(PAUSED, 1.0)))
    with pytest.raises(TrialStateError, match="cannot become 'minimize' after a trial has completed or paused"):
        store.settle("eval_loss", "minimize")
