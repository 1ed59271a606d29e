"""The points of learning curves: each is written once, and read once."""

from __future__ import annotations

import math

import pytest
from durable import execute, store_of, tuner

from llamatune_torch import Curve, Outcome, SchemaError, StorageWarning, load_study
from llamatune_torch.storage import points, session
from llamatune_torch.storage.database import Database


def revisions(url: str) -> list[int]:
    rows = Database(url).read(lambda t: t.rows("SELECT revision FROM llamatune_points ORDER BY trial, position"))
    return [row["revision"] for row in rows]


def test_a_report_writes_one_row_and_touches_no_other(url: str) -> None:
    mine = tuner(url)
    trial = mine.ask()
    for step in range(6):
        mine.report(trial, step, math.nan if step == 2 else step / 8, step / 5)
    before = revisions(url)
    assert len(before) == len(set(before)) == 6
    mine.report(trial, 5, 0.75, 1.0)  # a second one at the last step
    assert revisions(url)[:5] == before[:5]
    told = mine.tell(trial, 0.75)
    assert revisions(url)[:5] == before[:5]
    assert repr(told.curve) == repr(load_study(url).trials[0].curve) == repr(tuner(url).study.trials[0].curve)
    assert told.curve.values[3:] == (0.375, 0.5, 0.75)


def test_another_process_reads_only_the_points_it_does_not_know(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = tuner(url), tuner(url)
    trial = one.ask()
    for step in range(4):
        one.report(trial, step, step / 8)
    read: list[float] = []
    real = points._read_point

    def counting(row: dict[str, float], place: str) -> points.Point:
        read.append(row["step"])
        return real(row, place)

    store_of(two).session.refresh()
    monkeypatch.setattr(points, "_read_point", counting)
    store_of(two).session.refresh()
    assert read == []
    one.report(trial, 3, 0.75)
    one.report(trial, 4, 0.5)
    store_of(two).session.refresh()
    assert read == [3, 4]
    assert two.study.trials[0].curve.values == (0, 0.125, 0.25, 0.75, 0.5)


def test_the_curve_of_the_outcome_replaces_the_reported_one_also_by_a_shorter_one(url: str) -> None:
    mine = tuner(url)
    other = tuner(url)
    trial = mine.ask()
    for step in range(5):
        mine.report(trial, step, step / 8)
    store_of(other).session.refresh()
    mine.tell(trial, Outcome(0.5, curve=Curve((0, 7), (0.0, 0.5), (None, None))))
    store_of(other).session.refresh()
    assert len(revisions(url)) == 2
    for study in (mine.study, other.study, load_study(url)):
        assert study.trials[0].curve.steps == (0, 7)


def test_points_that_could_not_be_written_are_written_with_the_next(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tuner(url)
    trial = mine.ask()
    mine.report(trial, 1, 0.125)
    monkeypatch.setattr(session, "PATIENCE", 0.0)
    store_of(mine).session.patience = 0.0
    execute(url, "ALTER TABLE llamatune_points RENAME TO llamatune_away")
    for step in (2, 3):
        with pytest.warns(StorageWarning, match="kept until the next write"):
            mine.report(trial, step, step / 8)
    execute(url, "ALTER TABLE llamatune_away RENAME TO llamatune_points")
    mine.report(trial, 4, 0.5)
    assert load_study(url).trials[0].curve.values == (0.125, 0.25, 0.375, 0.5)
    mine.report(trial, 5, 0.625)
    assert load_study(url).trials[0].curve.steps == (1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("DELETE FROM llamatune_points WHERE position = 1", "point 1 of trial 0 is not in the database, but 2 is"),
        ("DELETE FROM llamatune_points WHERE position = 0", "point 0 of trial 0 is not in the database, but 1 is"),
        ("DELETE FROM llamatune_points WHERE position = 2", "trial 0 cannot be read: .* 2 of the 3 points"),
        ("UPDATE llamatune_trials SET details = replace(details, 'points\"\\:3', 'points\"\\:-1')", "of the -1 points"),
        ("UPDATE llamatune_trials SET details = replace(details, 'points\"\\:3', 'points\"\\:true')", "an integer"),
    ],
)
def test_points_that_are_missing_are_a_named_error(url: str, damage: str, message: str) -> None:
    mine = tuner(url)
    trial = mine.ask()
    for step in range(3):
        mine.report(trial, step, 0.5)
    execute(url, damage)
    with pytest.raises(SchemaError, match=message):
        load_study(url)


def test_text_where_a_number_should_be_is_a_named_error(sqlite_url: str) -> None:  # PostgreSQL refuses it itself
    mine = tuner(sqlite_url)
    mine.report(mine.ask(), 1, 0.5)
    execute(sqlite_url, "UPDATE llamatune_points SET value = 'high'")
    with pytest.raises(SchemaError, match="a point of trial 0: value must be a number, but got 'high'"):
        load_study(sqlite_url)
