"""Trials as tables: rows of plain values, text for people, a data frame; and back from CSV."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llamatune_torch.errors import ParamsError, SettingsError
from llamatune_torch.parameter_base import Parameter
from llamatune_torch.parameters import Categorical, Integer
from llamatune_torch.space import SearchSpace
from llamatune_torch.trial import Trial, TrialState, cause_of

if TYPE_CHECKING:
    from pandas import DataFrame as DataFrame


def show_value(value: Any) -> str:
    """A parameter's value for people: floats to four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else repr(value)


def show_params(params: Mapping[str, Any]) -> str:
    """Parameters on one line: ``{'learning_rate': 2.8e-05, 'batch_size': 16}``."""
    return "{" + ", ".join(f"{name!r}: {show_value(v)}" for name, v in params.items()) + "}"


def cells(trials: Sequence[Trial], value: str = "value") -> list[list[str]]:
    """The trials as text, a header first; a parameter that was inactive shows as "-".

    Args:
        trials: one row each.
        value: the header of the value's column.
    """
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    rows = [["trial", value, *names, "seconds", "state"]]
    for trial in trials:
        score = "-" if trial.value is None else f"{trial.value:.5g}"
        params = [show_value(trial.params[name]) if name in trial.params else "-" for name in names]
        seconds = "-" if trial.cost is None else f"{trial.cost:.1f}"
        state = f"{trial.state}: {trial.reason}" if trial.reason else str(trial.state)
        rows.append([str(trial.number), score, *params, seconds, state])
    return rows


def trials_table(trials: Sequence[Trial], value: str = "value") -> str:
    """The trials as aligned plain text, one a line; arguments as :func:`cells`."""
    if not trials:
        return "no trials"
    rows = cells(trials, value)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row[:-1], widths, strict=False)) + f"  {row[-1]}"
        for row in rows
    )


def to_row(trial: Trial, names: Sequence[str], missing: float | None = None) -> dict[str, Any]:
    """One trial as plain values: parameters as ``params.<name>``, ``missing`` where inactive or unknown."""
    return {
        "number": trial.number,
        "state": str(trial.state),
        "value": missing if trial.value is None else trial.value,
        **{f"params.{name}": trial.params.get(name, missing) for name in names},
        **{f"outcomes.{name}": value for name, value in trial.outcomes.items()},
        "cost": missing if trial.cost is None else trial.cost,
        "origin": trial.origin,
        "seed": trial.seed,
        "reason": trial.reason,
        "cause": trial.cause and str(trial.cause),
    }


def to_dataframe(trials: Sequence[Trial], names: Sequence[str]) -> DataFrame:
    """The trials as a table, nan where a parameter was inactive; needs pandas (``report``)."""
    try:
        import pandas as pd
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Study.dataframe() needs pandas: pip install 'llamatune-torch[report]'") from error
    return pd.DataFrame([to_row(trial, names, math.nan) for trial in trials])


def read_table(lines: Iterable[str], space: SearchSpace, metric: str) -> list[Trial]:
    """The trials in a CSV with a header.

    Columns are ``learning_rate`` or ``params.learning_rate`` for each parameter; ``value`` or the metric's name; and if
    they are there ``state``, ``reason``, ``error``, ``cost`` (seconds), ``outcomes.<name>``. An empty cell means that a
    parameter was inactive. A row without a value is a failed trial if its state says so, else it is LOST.

    Raises:
        SettingsError: a column is missing, or a cell cannot be read; the message has the row and the column.
    """
    table = csv.DictReader(lines)
    columns = list(table.fieldnames or [])
    places = {name: _column(columns, (f"params.{name}", name), f"parameter {name!r}") for name in space.names}
    value = _column(columns, ("value", metric), f"the value, {metric!r}")
    return [_trial(i, row, places, value, space) for i, row in enumerate(table)]


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
        cause=None if reason is None else cause_of(reason),
        error=row.get("error") or reason,
    )


def _may_be_active(parameter: Parameter, params: Mapping[str, Any]) -> bool:
    """True if the parents that were read so far allow it; a table need not have parents first."""
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
