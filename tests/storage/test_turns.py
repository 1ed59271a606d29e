"""Whose turn it is to suggest: the lease, the two steps of an ask, the budget, and waiting for others."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from typing import Any

import pytest
from durable import SPACE, eventually, execute, fall_silent, hill, states, store_of, tuner

from llamatune_torch import (
    BudgetSpentError,
    LlamaTune,
    NoCompletedTrialError,
    SpaceExhaustedError,
    Study,
    Trial,
    TrialState,
)
from llamatune_torch.storage import database, turns


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


def test_a_suggestion_is_computed_outside_of_any_transaction_and_refused_if_others_were_quicker(url: str) -> None:
    slow, quick = tuner(url), tuner(url)
    original, seen = slow._choose, []

    def choose(study: Study, n: int, left: float) -> Any:
        seen.append(len(study.trials))
        if len(seen) == 1:
            store_of(quick).settle("value", "maximize")  # a write does not have to wait
            execute(url, "UPDATE llamatune_studies SET lease_until = 0")  # as after a very long suggestion
            quick.ask()
        return original(study, n, left)

    slow._choose = choose  # type: ignore[method-assign]
    trial = slow.ask()
    assert seen == [0, 1]
    assert trial.number == 1
    assert trial.params != quick.study.trials[0].params


def test_others_wait_for_a_suggestion_under_way_but_not_for_a_dead_process(url: str) -> None:
    one, two = tuner(url), tuner(url)
    original = one._choose
    waited: list[float] = []

    def choose(study: Study, n: int, left: float) -> Any:
        if not waited:
            start = time.monotonic()
            trial = two.ask()  # one is "dead" from here: it would never come back
            waited.append(time.monotonic() - start)
            assert trial.number == 0
        return original(study, n, left)

    one._choose = choose  # type: ignore[method-assign]
    assert one.ask().number == 1
    assert 0.2 <= waited[0] < 5


def test_a_suggestion_that_fails_leaves_nobody_waiting(url: str) -> None:
    finite = {"c": ["a", "b"]}
    one, two = tuner(url, space=finite), tuner(url, space=finite)
    one.ask(2)
    with pytest.raises(SpaceExhaustedError):
        one.ask()
    rows = database.Database(url).read(
        lambda transaction: transaction.rows("SELECT lease_owner FROM llamatune_studies")
    )
    assert rows == [{"lease_owner": None}]
    with pytest.raises(SpaceExhaustedError):
        two.ask()


def test_what_an_interrupted_ask_has_started_is_given_back_or_handed_out(url: str) -> None:
    mine = tuner(url)
    mine.ask()
    store_of(mine)._heartbeat.numbers.clear()  # as if Ctrl-C had come right after the commit
    assert mine.ask().number == 0
    store_of(mine)._heartbeat.numbers.clear()
    assert [trial.number for trial in mine.ask(2)] == [1, 2]
    assert (mine.study.trials[0].state, mine.study.trials[0].reason) == (TrialState.LOST, "never begun")


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
    assert time.monotonic() - start < 30  # not its grace


def test_the_timeout_ends_the_wait_for_others(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llamatune_torch")
    dead = tuner(url, max_evals=2)
    dead.ask()
    store_of(dead)._heartbeat.numbers.clear()  # it dies at once
    last = tuner(url, hill, max_evals=2, grace=60.0, timeout=1.0)
    start = time.monotonic()
    last.optimize()
    assert 1.0 <= time.monotonic() - start < 30  # not its grace
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


def take_a_long_lease(url: str) -> None:
    """As of a worker whose suggestions take a minute."""
    execute(url, "UPDATE llamatune_studies SET lease_owner = 'slow', suggest_seconds = 60")
    opened = database.Database(url)
    opened.write(lambda t: t.run("UPDATE llamatune_studies SET lease_until = :until", until=t.now + 100))


def test_the_timeout_ends_the_wait_for_anothers_suggestion(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llamatune_torch")
    mine = tuner(url, hill, max_evals=2, timeout=1.0)
    take_a_long_lease(url)
    start = time.monotonic()
    with pytest.raises(NoCompletedTrialError):
        mine.optimize()
    assert 1.0 <= time.monotonic() - start < 20
    assert "stopped: the timeout of 1 s has passed" in caplog.text


def test_stop_ends_the_wait_for_anothers_suggestion(url: str) -> None:
    mine = tuner(url, hill, max_evals=2)
    take_a_long_lease(url)
    stopping = threading.Timer(0.5, mine.stop)
    stopping.start()
    start = time.monotonic()
    with pytest.raises(NoCompletedTrialError):
        mine.optimize()
    assert time.monotonic() - start < 20
    stopping.join()


def test_the_first_ctrl_c_ends_the_wait_for_anothers_suggestion(url: str) -> None:
    mine = tuner(url, hill, max_evals=2)
    take_a_long_lease(url)
    pressing = threading.Timer(0.5, signal.raise_signal, [signal.SIGINT])
    pressing.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        mine.optimize()
    assert time.monotonic() - start < 20
    pressing.join()
    assert (mine.interrupted, mine.study.trials) == (True, ())


def test_a_trial_runs_again_while_another_worker_has_the_lease(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dead, slow, quick = tuner(url), tuner(url), tuner(url)
    original, seen = slow._choose, []

    def choose(study: Study, n: int, left: float) -> Any:
        if not seen:
            execute(url, "UPDATE llamatune_studies SET lease_until = lease_until + 1000")
            fall_silent(url, dead)
            with monkeypatch.context() as patch:
                patch.setattr(turns, "wait_for_lease", lambda *_: pytest.fail("a retry needs no suggestion"))
                seen.append(quick.ask())
        return original(study, n, left)

    lost = dead.ask()
    slow._choose = choose  # type: ignore[method-assign]
    assert slow.ask().number == 2
    assert (seen[0].number, seen[0].retry_of, seen[0].params) == (1, 0, lost.params)


def test_each_trial_that_starts_is_on_disk_before_it_runs(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    durable: list[bool] = []
    starts: list[tuple[int, bool]] = []
    write, put_started = database.Database.write, turns.put_started

    def writing(self: database.Database, work: Any, **how: bool) -> Any:
        if threading.current_thread() is threading.main_thread():  # a sign of life may come at any moment
            durable.append(how.get("durable", True))
        return write(self, work, **how)

    def putting(*arguments: Any) -> list[Trial]:
        started = put_started(*arguments)
        starts.extend((trial.number, durable[-1]) for trial in started)
        return started

    dead, alive = tuner(url), tuner(url)
    monkeypatch.setattr(database.Database, "write", writing)
    monkeypatch.setattr(turns, "put_started", putting)
    dead.ask()
    fall_silent(url, dead)
    assert [trial.origin for trial in (alive.ask(), alive.ask())] == ["retry", "sobol"]
    assert starts == [(0, True), (1, True), (2, True)]
    assert False in durable  # the plans need not wait
