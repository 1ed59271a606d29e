"""The points of learning curves: a table of their own, in which a report adds one row and rewrites nothing.

A trial's row says how many points its curve has. Rows beyond that are none of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import groupby
from typing import Any

from llamatune_torch.curve import Curve, Point
from llamatune_torch.errors import SchemaError
from llamatune_torch.storage.database import Transaction
from llamatune_torch.storage.validation import number, optional, take, whole


def write_points(transaction: Transaction, study: int, trial: int, revision: int, old: Curve, new: Curve) -> None:
    """Writes the points of a trial's curve that its ``old`` curve, which is in the database, has not."""
    same = new.shared_with(old)
    if same < len(old):
        transaction.run(
            "DELETE FROM llamatune_points WHERE study = :study AND trial = :trial AND position >= :same",
            study=study,
            trial=trial,
            same=same,
        )
    added = [
        # SQLite knows no nan: it is null, in both databases.
        {"position": i, "step": point.step, "value": None if math.isnan(point.value) else point.value}
        | {"study": study, "trial": trial, "revision": revision, "progress": point.progress}
        for i, point in enumerate(new.beyond(same), same)
    ]
    transaction.run_many(
        "INSERT INTO llamatune_points (study, trial, position, revision, step, value, progress) "
        "VALUES (:study, :trial, :position, :revision, :step, :value, :progress)",
        added,
    )


def read_curves(transaction: Transaction, study: int, known: Mapping[int, Curve], since: int) -> dict[int, Curve]:
    """Reads the curves that have changed after a revision, by the numbers of their trials.

    Args:
        transaction: any.
        study: the study's id.
        known: the curves as they were at that revision; a trial that is missing had none.
        since: the revision; -1 reads all points.

    Raises:
        SchemaError: a point cannot be read, or one is missing before it.
    """
    rows = transaction.rows(
        "SELECT trial, position, step, value, progress FROM llamatune_points "
        "WHERE study = :study AND revision > :since ORDER BY trial, position",
        study=study,
        since=since,
    )
    curves = {}
    for trial, own in groupby(rows, lambda row: take(row, "trial", "a point", whole)):
        points = list(own)
        first = take(points[0], "position", f"a point of trial {trial}", whole)
        for i, row in enumerate(points, first):
            if row["position"] != i:
                raise SchemaError(f"point {i} of trial {trial} is not in the database, but {row['position']!r} is")
        curve = known.get(trial, Curve()).up_to(first)
        if len(curve) < first:
            raise SchemaError(f"point {len(curve)} of trial {trial} is not in the database, but {first} is")
        curves[trial] = curve.followed_by(_read_point(row, f"a point of trial {trial}") for row in points)
    return curves


def _read_point(row: Mapping[str, Any], place: str) -> Point:
    value = take(row, "value", place, optional(number))
    progress = take(row, "progress", place, optional(number))
    return Point(take(row, "step", place, number), math.nan if value is None else value, progress)
