"""Trials from a table of text, such as a CSV file: each cell read as what its parameter can be."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from typing import Any

from llamatune_torch.errors import ParamsError, SettingsError
from llamatune_torch.parameter import Parameter
from llamatune_torch.parameters import Categorical, Integer
from llamatune_torch.space import SearchSpace
from llamatune_torch.study import Study, Trial, TrialState


def read_table(lines: Iterable[str], study: Study) -> list[Trial]:
    """The trials in a CSV with a header.

    Columns are ``learning_rate`` or ``params.learning_rate`` for each parameter; ``value`` or the metric's name; and if
    they are there ``state``, ``reason``, ``error``, ``cost`` (seconds), ``outcomes.<name>``. An empty cell means that a
    parameter was inactive. A row without a value is a failed trial if its state says so, else it is LOST.

    Raises:
        SettingsError: a column is missing, or a cell cannot be read; the message has the row and the column.
    """
    table = csv.DictReader(lines)
    columns = list(table.fieldnames or [])
    places = {name: _column(columns, (f"params.{name}", name), f"parameter {name!r}") for name in study.space.names}
    value = _column(columns, ("value", study.metric), f"the value, {study.metric!r}")
    return [_trial(i, row, places, value, study.space) for i, row in enumerate(table)]


def _column(columns: list[str], names: tuple[str, ...], what: str) -> str:
    for name in names:
        if name in columns:
            return name
    raise SettingsError(f"the table needs a column for {what}, {' or '.join(map(repr, names))}, but has {columns}")


def _trial(
    number: int, row: Mapping[str, str], places: Mapping[str, str], value_column: str, space: SearchSpace
) -> Trial:
    params: dict[str, Any] = {}
    for name, column in places.items():
        cell = (row[column] or "").strip()
        if _may_be_active(space[name], params) and (cell or _is_none(space[name])):
            params[name] = _parsed(space[name], cell, f"row {number + 1}, column {column!r}")
    value = _number(row[value_column] or "", f"row {number + 1}, column {value_column!r}")
    failed = row.get("state") == "failed" or (value is not None and math.isnan(value))
    state = TrialState.FAILED if failed else TrialState.LOST if value is None else TrialState.COMPLETE
    outcomes: dict[str, float] = {}
    for column in row:
        if column.startswith("outcomes."):
            measured = _number(row[column] or "", f"row {number + 1}, column {column!r}")
            outcomes |= {} if measured is None else {column.removeprefix("outcomes."): measured}
    reason = (row.get("reason") or "unknown") if failed else None
    return Trial(
        number,
        params,
        seed=0,
        origin="added",
        state=state,
        value=None if failed else value,
        outcomes=outcomes,
        cost=_number(row.get("cost") or "", f"row {number + 1}, column 'cost'"),
        reason=reason,
        error=row.get("error") or reason,
    )


def _may_be_active(parameter: Parameter, params: Mapping[str, Any]) -> bool:
    """Whether the parents that were read so far allow it; a table need not have parents first."""
    return all(parent not in params or params[parent] in values for parent, values in parameter.when.items())


def _is_none(parameter: Parameter) -> bool:
    return isinstance(parameter, Categorical) and None in parameter.choices


def _parsed(parameter: Parameter, cell: str, place: str) -> Any:
    if isinstance(parameter, Categorical):
        named = {"" if choice is None else str(choice): choice for choice in parameter.choices}
        if cell not in named:
            raise ParamsError(f"{place}: must be one of {list(named)}, but got {cell!r}")
        return named[cell]
    number = _number(cell, place)
    assert number is not None
    return int(number) if isinstance(parameter, Integer) and number.is_integer() else number


def _number(cell: str, place: str) -> float | None:
    if not cell.strip():
        return None
    try:
        return float(cell)
    except ValueError:
        raise SettingsError(f"{place}: must be a number, but got {cell!r}") from None
