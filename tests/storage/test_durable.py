"""Durable studies: resumed as one long run, and shared by many. Real files, real servers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from durable import SPACE, hill, tuner
from sqlalchemy.exc import OperationalError

from llamatune_torch import (
    LlamaTune,
    Outcome,
    SettingsError,
    Trial,
)
from llamatune_torch.storage import database
from llamatune_torch.storage.reader import Reader


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
