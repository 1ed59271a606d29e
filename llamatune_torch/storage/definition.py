"""Opening a stored study: a new one is written down, an old one has to be the same search."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from llamatune_torch.errors import ParamsError, StudyMismatchError
from llamatune_torch.space import Params, SearchSpace
from llamatune_torch.storage.database import OPENING_PATIENCE, Database, Transaction
from llamatune_torch.storage.serialization import differences, read_space, write, write_space
from llamatune_torch.study import Study

logger = logging.getLogger(__name__)


def open_study(
    transaction: Transaction,
    shown: str,
    name: str,
    given: Study,
    settled: bool,
    settings: Mapping[str, Any],
    extend: bool,
) -> tuple[int, Study, dict[str, Any]]:
    """The study's id, its record without trials, and its settings; made if it is new."""
    rows = transaction.rows("SELECT * FROM llamatune_studies WHERE name = :name", name=name)
    if not rows:
        number = transaction.rows("SELECT coalesce(max(id), 0) + 1 AS id FROM llamatune_studies")[0]["id"]
        settings = {**settings, "seed": settings.get("seed") or 0}
        transaction.run(
            "INSERT INTO llamatune_studies (id, name, space, direction, metric, initial_points, settings, revision, "
            "asking_until, ask_seconds) VALUES (:id, :name, :space, :direction, :metric, :points, :settings, 0, 0, 0)",
            id=number,
            name=name,
            space=write_space(given.space),
            direction=given.direction,
            metric=given.metric if settled else None,
            points=write(given.initial_points),
            settings=write(settings),
        )
        return number, given, dict(settings)

    row = rows[0]
    known = row["metric"] is not None
    stored = replace(given, space=read_space(row["space"]), direction=row["direction"], metric=row["metric"] or "value")
    lines, extensible = differences(stored.space, given.space)
    if settled and known:
        score = score_differences(stored, given, True)
        lines, extensible = lines + score, extensible and not score
    if lines and not (extend and extensible):
        raise StudyMismatchError(mismatch(name, shown, lines, extensible))
    if lines:
        logger.info("study %r: its space is now another: %s", name, "; ".join(lines))
    study = given if settled or not known else replace(given, direction=stored.direction, metric=stored.metric)
    points = json.loads(row["initial_points"])
    points += [point for point in given.initial_points if write(point) not in map(write, points)]
    before = json.loads(row["settings"])
    settings = {**before, **{key: value for key, value in settings.items() if key != "seed" or value is not None}}
    transaction.run(
        "UPDATE llamatune_studies SET space = :space, direction = :direction, metric = :metric, "
        "initial_points = :points, settings = :settings, revision = revision + 1 WHERE id = :id",
        id=row["id"],
        space=write_space(given.space),
        direction=study.direction,
        metric=study.metric if settled or known else None,
        points=write(points),
        settings=write(settings),
    )
    return row["id"], replace(study, initial_points=tuple(_fitting(given.space, points))), settings


def score_differences(stored: Study, given: Study, named: bool) -> list[str]:
    """What differs in the score, a line each; ``named`` says whether the stored metric has a name already."""
    lines = []
    if stored.direction != given.direction:
        lines.append(f"direction: stored {stored.direction!r}, given {given.direction!r}")
    if named and stored.metric != given.metric:
        lines.append(f"metric: stored {stored.metric!r}, given {given.metric!r}")
    return lines


def mismatch(name: str, shown: str, lines: Sequence[str], extensible: bool) -> str:
    """What differs, for people, and what they can do."""
    remedy = "extend=True accepts that, and uses the old trials that still fit; " if extensible else ""
    shown_lines = "".join(f"\n  {line}" for line in lines)
    return f"study {name!r} in {shown} is another search:{shown_lines}\n{remedy}another name starts a new study"


def remember(url: str, name: str, settings: Mapping[str, Any]) -> None:
    """Adds to the settings of a stored study, for later starts."""
    database = Database(url)

    def work(transaction: Transaction) -> None:
        # The study for itself first: another start may be writing its own.
        transaction.run("UPDATE llamatune_studies SET revision = revision + 1 WHERE name = :name", name=name)
        (row,) = transaction.rows("SELECT settings FROM llamatune_studies WHERE name = :name", name=name)
        transaction.run(
            "UPDATE llamatune_studies SET settings = :settings WHERE name = :name",
            settings=write({**json.loads(row["settings"]), **settings}),
            name=name,
        )

    database.patiently(lambda: database.write(work), "settings to be written", OPENING_PATIENCE)


def _fitting(space: SearchSpace, points: Sequence[Params]) -> Iterator[Params]:
    for point in points:
        try:
            yield space.validate(point)
        except ParamsError:
            continue
