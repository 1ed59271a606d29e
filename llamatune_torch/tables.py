"""Trials as tables: rows of plain values, text for people, HTML, a data frame; and back from CSV."""

from __future__ import annotations

import csv
import html
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

from llamatune_torch.errors import ParamsError, SettingsError
from llamatune_torch.parameter_base import Comparison, Parameter, compact, meets
from llamatune_torch.parameters import Categorical, Integer
from llamatune_torch.space import SearchSpace
from llamatune_torch.text import from_cell, printable, quote, to_cell
from llamatune_torch.trial import Cause, Trial, TrialState, cause_of

if TYPE_CHECKING:
    from pandas import DataFrame as DataFrame


#: Words that YAML does not take for a text.
_YAML_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
#: Characters of a cell that a notebook shows: a reason may be a page long.
MAX_CELL = 200


def show_value(value: Any) -> str:
    """A parameter's value for people: floats to four significant digits, lists and dicts as JSON."""
    if isinstance(value, (list, dict)):
        return compact(value)
    return f"{value:.4g}" if isinstance(value, float) else repr(value)


def plain(value: Any) -> Any:
    """A parameter's value for one cell: a list or dict as JSON, anything else as it is."""
    return compact(value) if isinstance(value, (list, dict)) else value


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
    return [[printable(cell).replace("\n", "\\n") for cell in row] for row in rows]


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


def html_table(trials: Sequence[Trial], value: str = "value") -> str:
    """The trials as an HTML table, one a row; arguments as :func:`cells`. A cell of many characters loses its end."""
    head, *rows = ([_html(cell) for cell in row] for row in cells(trials, value))
    lines = ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    top = "".join(f"<th>{cell}</th>" for cell in head)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(f'<tr>{line}</tr>' for line in lines)}</tbody></table>"


def _html(cell: str) -> str:
    return html.escape(cell if len(cell) <= MAX_CELL else f"{cell[:MAX_CELL]}...")


def arguments(params: Mapping[str, Any], flags: bool = False) -> str:
    """Parameters for a shell, as ``HfArgumentParser`` reads them: ``--learning_rate 3e-05 --fp16 True``.

    A list or dict is its JSON. What is ``None`` is left out: that is how to leave something unset on a command line.

    Args:
        params: the parameters.
        flags: whether a boolean is ``--fp16`` or absent, as ``action="store_true"`` wants it.
    """
    given = {name: value for name, value in params.items() if value is not None and not (flags and value is False)}
    return " ".join(
        quote(f"--{name}") if flags and value is True else _pair(name, str(plain(value)))
        for name, value in given.items()
    )


def _pair(name: str, value: str) -> str:
    if value.startswith("-"):  # argparse takes -1e-05 for an option, unless an equals sign ties it to its name
        return quote(f"--{name}={value}")
    return f"{quote(f'--{name}')} {quote(value)}"


def to_yaml(params: Mapping[str, Any]) -> str:
    """Parameters as YAML, one a line; lists and dicts as JSON, which is YAML too.

    Example:
        >>> print(to_yaml({"learning_rate": 3e-05, "method": "lora"}))
        learning_rate: 3.0e-05
        method: "lora"
    """
    return "\n".join(f"{_as_key(name)}: {_as_yaml(value)}" for name, value in params.items())


def _as_key(name: str) -> str:
    is_plain = name.isascii() and name.isidentifier() and name.lower() not in _YAML_WORDS
    return name if is_plain else _as_yaml(name)


def _as_yaml(value: Any) -> str:
    if isinstance(value, float):
        if not math.isfinite(value):
            return ".nan" if math.isnan(value) else f"{'-' if value < 0 else ''}.inf"
        text = repr(value)
        return text.replace("e", ".0e") if "e" in text and "." not in text else text  # else PyYAML reads a text
    if isinstance(value, list):
        return f"[{', '.join(map(_as_yaml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_as_yaml(name)}: {_as_yaml(each)}" for name, each in value.items()) + "}"
    return printable(json.dumps(value, ensure_ascii=False))  # both escape as YAML does


def to_row(trial: Trial, names: Sequence[str], missing: float | None = None) -> dict[str, Any]:
    """One trial as plain values: parameters as ``params.<name>``, ``missing`` where inactive or unknown.

    ``cost`` is in seconds, ``started`` and ``finished`` are times in UTC. ``worker`` begins with the host's
    name.
    """
    return {
        "number": trial.number,
        "state": str(trial.state),
        "value": missing if trial.value is None else trial.value,
        **({} if trial.std is None else {"std": trial.std}),
        **{f"params.{name}": plain(trial.params.get(name, missing)) for name in names},
        **{f"outcomes.{name}": value for name, value in trial.outcomes.items()},
        "cost": missing if trial.cost is None else trial.cost,
        "origin": trial.origin,
        "seed": trial.seed,
        "reason": trial.reason,
        "cause": trial.cause and str(trial.cause),
        "error": trial.error,
        **{f"notes.{name}": note for name, note in trial.notes.items()},
        "curve_length": len(trial.curve),
        "started": _time(trial.started),
        "finished": _time(trial.finished),
        "worker": trial.worker,
        "retry_of": trial.retry_of,
    }


def _time(seconds: float | None) -> datetime | None:
    """A Unix time in UTC; ``None`` if it is unknown, or no time that a calendar has."""
    try:
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def to_csv(rows: Sequence[Mapping[str, Any]], file: TextIO) -> None:
    """Writes rows as a table with a header, with all of their columns; :func:`read_table` reads it.

    No text in it is run: neither by a terminal (:func:`printable`) nor by a spreadsheet (:func:`to_cell`).
    """
    columns = list(dict.fromkeys(column for row in rows for column in row))
    table = csv.DictWriter(file, [to_cell(printable(column)) for column in columns], restval="", lineterminator="\n")
    table.writeheader()
    table.writerows({to_cell(printable(column)): _cell(value) for column, value in row.items()} for row in rows)


def _cell(value: Any) -> Any:
    return to_cell(printable(value)) if isinstance(value, str) else value


def to_dataframe(trials: Sequence[Trial], names: Sequence[str]) -> DataFrame:
    """The trials as a table, nan where a parameter was inactive; needs pandas (``report``)."""
    try:
        import pandas as pd
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Study.dataframe() needs pandas: pip install 'llamatune-torch[report]'") from error
    return pd.DataFrame([to_row(trial, names, math.nan) for trial in trials])


#: Words for the state of a run, as this package, Optuna, MLflow, W&B and Ray write them, in lower case.
STATES: Mapping[str, TrialState] = {
    **dict.fromkeys(
        ("", "complete", "completed", "finished", "succeeded", "success", "done", "ok", "terminated"),
        TrialState.COMPLETE,
    ),
    **dict.fromkeys(("failed", "fail", "failure", "crashed", "error", "errored"), TrialState.FAILED),
    **dict.fromkeys(("running", "waiting", "pending", "scheduled", "queued", "paused"), TrialState.RUNNING),
    **dict.fromkeys(("stopped", "pruned", "early stopped", "early-stopped", "early_stopped"), TrialState.STOPPED),
    **dict.fromkeys(("lost", "killed", "aborted", "canceled", "cancelled", "preempted", "preempting"), TrialState.LOST),
}
#: Columns that a row may have beside its parameters and its value.
FACTS = ("state", "reason", "error", "cost", "std")
#: Text for an empty cell, in lower case.
EMPTY = ("", "nan", "na", "n/a", "none", "null", "-")
#: Text for a boolean, in lower case.
BOOLEANS = {"true": True, "yes": True, "1": True, "1.0": True, "false": False, "no": False, "0": False, "0.0": False}


def decode_table(data: bytes) -> str:
    """Decodes the bytes of a table, as programs and spreadsheets write them: UTF-8, or UTF-16 with its mark.

    Raises:
        UnicodeDecodeError: they are something else.
    """
    return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")


def read_table(
    lines: Iterable[str], space: SearchSpace, metric: str, columns: Mapping[str, str] | None = None
) -> list[Trial]:
    """Reads the trials in a table with a header; commas, semicolons or tabs separate its cells.

    Columns are ``learning_rate`` for each parameter, also with ``params.``, ``config.`` or the like before it.
    ``value`` or the metric's name has the value, also ``metrics.eval_loss``, ``summary.eval_loss`` or ``eval/loss``. If
    they are there, ``state`` or ``status``, ``reason``, ``error``, ``cost`` (seconds), ``std``, ``outcomes.<name>`` and
    ``notes.<name>`` are read.
    An empty cell means that a parameter was inactive. Where cells are not separated by commas, a number may have a
    decimal comma.

    There is a trial for each row. One that failed or crashed is FAILED, and one that was pruned or stopped early is
    STOPPED. One that is running, paused or killed, or has no value, is LOST, and its reason says which of it.

    Args:
        lines: the table.
        space: the space that the parameters belong to.
        metric: the name of the value.
        columns: the columns of parameters, of "value", or of facts that have other names than those above.

    Raises:
        SettingsError: a column is missing, or a cell cannot be read; the message has the row and the column.
        ParamsError: a cell has a choice that does not exist.

    Example:
        >>> read_table(["lr,eval/loss,State", "0.1,0.5,crashed"], SearchSpace({"lr": (0.0, 1.0)}), "eval_loss")[0].state
        <TrialState.FAILED: 'failed'>
    """
    header, rows, comma = _split(lines)
    named = dict(columns or {})
    params = {
        name: _column(header, _names_of(name), f"parameter {name!r}", named.pop(name, None)) for name in space.names
    }
    facts = {"value": _column(header, _names_of_value(metric), f"the value, {metric!r}", named.pop("value", None))}
    for fact in FACTS:
        names = [fact, "status"] if fact == "state" else [fact]
        names = [name for name in header if name.lower() in names and name not in params.values()]
        if fact in named or names:
            facts[fact] = _column(header, names, f"the {fact}", named.pop(fact, None))
    if named:
        known = [*space.names, "value", *FACTS]
        raise SettingsError(f"a column can be given for one of {known}, but got {list(named)}")
    return [_Row(number, row, params, facts, comma).trial(space) for number, row in enumerate(rows)]


def _split(lines: Iterable[str]) -> tuple[list[str], list[dict[str, str]], bool]:
    """The header, the rows that are not empty, and whether numbers may have a decimal comma."""
    text = "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)
    first, _, rest = text.partition("\n")
    if first.strip().lower().startswith("sep="):  # a spreadsheet's hint to itself
        delimiter, text = first.strip()[4:5] or ",", rest
    else:
        unquoted = "".join(first.split('"')[::2])
        delimiter = max(",;\t", key=unquoted.count)
    try:
        table = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error as error:
        raise SettingsError(f"the table cannot be read: {error}") from error
    header = [column.strip() for column in table[0]] if table else []
    rows = [row for row in table[1:] if any(cell.strip() for cell in row)]
    for i, row in enumerate(rows):
        if any(cell.strip() for cell in row[len(header) :]):
            raise SettingsError(f"row {i + 1} has {len(row)} cells, but the header has {len(header)}")
    full = [dict(zip(header, row + [""] * len(header), strict=False)) for row in rows]
    return header, full, delimiter != ","


def _names_of(parameter: str) -> list[str]:
    prefixes = ("params.", "", "params_", "params/", "config.", "config/", "hparams.")
    return [prefix + name for name in dict.fromkeys([parameter, printable(parameter)]) for prefix in prefixes]


def _names_of_value(metric: str) -> list[str]:
    names = dict.fromkeys([metric, metric.replace("_", "/", 1)])
    return ["value", *(prefix + name for name in names for prefix in ("", "metrics.", "metrics/", "summary."))]


def _column(header: list[str], names: Sequence[str], what: str, given: str | None) -> str:
    for name in names if given is None else [given]:
        if header.count(name) > 1:
            raise SettingsError(f"the table has several columns {name!r}")
        if name in header:
            return name
    shown = str(header) if len(str(header)) < 1000 else f"{str(header)[:1000]}..."
    wanted = repr(given) if given is not None else " or ".join(map(repr, names[:2]))
    raise SettingsError(
        f"the table needs a column for {what}, {wanted}, but has {shown}: --map NAME=COLUMN says which it is"
    )


@dataclass(frozen=True)
class _Row:
    """A row of a table, the columns of parameters and of facts, and whether its numbers may have a decimal comma."""

    number: int
    cells: Mapping[str, str]
    params: Mapping[str, str]
    facts: Mapping[str, str]
    comma: bool

    def trial(self, space: SearchSpace) -> Trial:
        params: dict[str, Any] = {}
        for name in space.names:
            column = self.params[name]
            cell = self.cells[column].strip()
            active = _may_be_active(space.conditions[name], params)
            if active and (_is_none(space[name]) or cell.lower() not in EMPTY or _is_choice(space[name], cell)):
                params[name] = self._parsed(space[name], column)
        state, value, reason = self._end()
        causes = {TrialState.FAILED: cause_of(reason or ""), TrialState.LOST: Cause.ABANDONED}
        has_failed = state in causes
        outcomes = {
            column.removeprefix("outcomes."): measured
            for column in self.cells
            if column.startswith("outcomes.") and (measured := self._number(column)) is not None
        }
        notes = {
            column.removeprefix("notes."): from_cell(note)
            for column, note in self.cells.items()
            if column.startswith("notes.") and note
        }
        return Trial(
            self.number,
            params,
            seed=0,
            origin="added",
            state=state,
            value=value,
            outcomes=outcomes,
            cost=self._number(self.facts["cost"]) if "cost" in self.facts else None,
            std=self._spread(),
            reason=reason,
            cause=causes.get(state),
            error=self._fact("error") or (reason if has_failed else None),
            notes=notes,
        )

    def _end(self) -> tuple[TrialState, float | None, str | None]:
        """The state, the value of a complete trial, and the reason of any other."""
        word = self._fact("state").lower().removeprefix("trialstate.")
        if word not in STATES:
            place = f"row {self.number + 1}, column {self.facts['state']!r}"
            raise SettingsError(f"{place}: must be one of {list(STATES)}, but got {word!r}")
        state, value = STATES[word], self._number(self.facts["value"])
        if state in (TrialState.RUNNING, TrialState.LOST):
            return TrialState.LOST, None, word
        if state is TrialState.STOPPED:
            return TrialState.STOPPED, None, self._fact("reason") or word
        if state is TrialState.FAILED or (value is not None and math.isnan(value)):
            return TrialState.FAILED, None, self._fact("reason") or ("unknown" if state is TrialState.FAILED else "nan")
        return (TrialState.LOST, None, "without a value") if value is None else (TrialState.COMPLETE, value, None)

    def _spread(self) -> float | None:
        std = self._number(self.facts["std"]) if "std" in self.facts else None
        if std is not None and not 0 <= std < math.inf:
            place = f"row {self.number + 1}, column {self.facts['std']!r}"
            raise SettingsError(f"{place}: must be a finite number >= 0, but got {std}")
        return std

    def _fact(self, name: str) -> str:
        return from_cell(self.cells[self.facts[name]].strip()) if name in self.facts else ""

    def _number(self, column: str) -> float | None:
        cell = self.cells[column].strip()
        if not cell:
            return None
        try:
            return float(cell.replace(",", ".") if self.comma and cell.count(",") == 1 else cell)
        except ValueError:
            if cell.lower() in EMPTY:
                return None
            place = f"row {self.number + 1}, column {column!r}"
            raise SettingsError(f"{place}: must be a number, but got {cell[:100]!r}") from None

    def _parsed(self, parameter: Parameter, column: str) -> Any:
        if isinstance(parameter, Categorical):
            return self._choice(parameter, column)
        number = self._number(column)
        return int(number) if isinstance(parameter, Integer) and number is not None and number.is_integer() else number

    def _choice(self, parameter: Categorical, column: str) -> Any:
        """The choice that a cell stands for: as it is written here, or else as other programs write it."""
        cell = self.cells[column].strip()
        named = {"" if choice is None else str(plain(choice)): choice for choice in parameter.choices}
        named = {printable(shown): choice for shown, choice in named.items()} | named
        ours = {str(_cell(choice)): choice for choice in parameter.choices if choice is not None}
        if cell in ours:
            return ours[cell]
        if cell in named:
            return named[cell]
        meant = [choice for choice in parameter.choices if _means(cell, choice, self.comma)]
        if len(meant) != 1:
            place = f"row {self.number + 1}, column {column!r}"
            raise ParamsError(f"{place}: must be one of {list(named)}, but got {cell[:100]!r}")
        return meant[0]


def _means(cell: str, choice: Any, comma: bool) -> bool:
    if choice is None:
        return cell.lower() in EMPTY
    if isinstance(choice, bool):
        return BOOLEANS.get(cell.lower()) is choice
    if isinstance(choice, (int, float)):
        try:
            return float(cell.replace(",", ".") if comma else cell) == choice
        except ValueError:
            return False
    return False


def _may_be_active(condition: Mapping[str, Sequence[Any]], params: Mapping[str, Any]) -> bool:
    """True if the parents that were read so far allow it; a table need not have parents first."""
    return all(parent not in params or _is_met(params[parent], values) for parent, values in condition.items())


def _is_met(value: Any, wanted: Sequence[Any]) -> bool:
    # A number may have been read as 1.0 where 1 is meant.
    return value in wanted or meets(value, [each for each in wanted if isinstance(each, Comparison)])


def _is_none(parameter: Parameter) -> bool:
    return isinstance(parameter, Categorical) and None in parameter.choices


def _is_choice(parameter: Parameter, cell: str) -> bool:
    """True if a cell that looks empty is the text of a choice, such as "none"."""
    return bool(cell) and isinstance(parameter, Categorical) and cell in map(str, map(plain, parameter.choices))
