"""Durable studies: resumed as one long run, and shared by many. Real files, real servers."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from durable import SPACE, execute, hill, store_of, tuner
from sqlalchemy.exc import OperationalError

from llamatune_torch import (
    BudgetSpentError,
    LlamaTune,
    Outcome,
    SettingsError,
    SpaceExhaustedError,
    Study,
    Trial,
    TrialState,
)
from llamatune_torch.storage import database, session
from llamatune_torch.storage.reader import Reader
from llamatune_torch.storage.serialization import read_trial


def what(trials: Sequence[Trial]) -> list[tuple[Any, ...]]:
    return [(trial.params, trial.seed, trial.origin, trial.value) for trial in trials]


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
    stored = Reader(url).look("s")
    settings = stored.settings
    assert repr(stored.study) == repr(first.study)
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
    assert Reader(url).names() == ["one", "two"]


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

    monkeypatch.setattr(session, "read_trial", counting)
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
    rows = database.Database(url).read(lambda transaction: transaction.rows("SELECT asking FROM llamatune_studies"))
    assert rows == [{"asking": None}]
    with pytest.raises(SpaceExhaustedError):
        two.ask()


def breaking_after(monkeypatch: pytest.MonkeyPatch, times: int) -> list[int]:
    """Transactions that come through, though they seem to fail: the connection breaks after the commit."""
    original, broken = database.Database.write, [times]

    def write(self: database.Database, work: Any, **how: bool) -> Any:
        result = original(self, work, **how)
        if broken[0]:
            broken[0] -= 1
            raise OperationalError("COMMIT", {}, Exception("server closed the connection unexpectedly"))
        return result

    monkeypatch.setattr(database.Database, "write", write)
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
