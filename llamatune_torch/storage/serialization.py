"""Spaces and trials as JSON, without loss: the content of the database's columns.

The law, kept by a property test: ``read_space(write_space(space)) == space``, and the same for trials. Text is ASCII,
so that no database stumbles over an odd character in an error message.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llamatune_torch.errors import ParamsError, SchemaError, SpaceError
from llamatune_torch.parameter_base import Parameter, describe, to_python
from llamatune_torch.parameters import Categorical, Integer, Real
from llamatune_torch.space import SearchSpace
from llamatune_torch.trial import Cause, Curve, Trial, TrialState

KINDS: Mapping[str, type[Any]] = {"Real": Real, "Integer": Integer, "Categorical": Categorical}

#: The fields of a parameter that ``extend=True`` may change.
EXTENSIBLE = {"low", "high", "special", "choices"}


def to_json(value: Any) -> str:
    """Writes a value as JSON on one line.

    numpy's and torch's scalars become the numbers they hold; anything else that JSON does not know becomes its repr.
    """
    return json.dumps(
        value, default=lambda odd: repr(odd) if to_python(odd) is odd else to_python(odd), separators=(",", ":")
    )


def to_strict(value: Any) -> Any:
    """Replaces infinity and nan by text, at any depth, for the JSON parsers of other programs.

    Example:
        >>> to_strict({"loss": float("inf")})
        {'loss': 'inf'}
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: to_strict(inner) for key, inner in value.items()}
    return [to_strict(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def write_space(space: SearchSpace) -> str:
    """Writes a space as JSON: its parameters in order, each with its kind and its arguments.

    Raises:
        SpaceError: a parameter is of the user's own class, so nobody else could read it.
    """
    for name, parameter in space.parameters.items():
        if type(parameter) not in KINDS.values():
            raise SpaceError(f"parameter {name!r} cannot be stored: it must be one of {list(KINDS)}, not {parameter!r}")
    return to_json([{"name": name, **_list_fields(parameter)} for name, parameter in space.parameters.items()])


def read_space(text: str) -> SearchSpace:
    """Reads the space that :func:`write_space` wrote.

    Raises:
        SchemaError: the text is anything else.
    """
    try:
        return SearchSpace({entry.pop("name"): _make_parameter(entry) for entry in json.loads(text)})
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # a SpaceError is a ValueError
        raise SchemaError(f"the stored search space cannot be read ({error}): {text[:200]}") from error


def compare_spaces(stored: SearchSpace, given: SearchSpace) -> tuple[list[str], bool]:
    """Lists the differences between two spaces, a line each; True if ``extend=True`` would accept them.

    The order of the parameters is none, nor is that of the parents and their values in a condition.
    """
    lines, extensible = [], sorted(stored.names) == sorted(given.names)
    if not extensible:
        lines.append(f"parameters: stored {stored.names}, given {given.names}")
    for name in stored.names:
        if name not in given.names:
            continue
        old, new = _list_fields(stored[name]), _list_fields(given[name])
        changed = [key for key in old if key not in new or not _is_same(key, old[key], new[key])]
        if changed:
            lines.append(f"{name}: stored {stored[name]!r}, given {given[name]!r}")
            extensible = extensible and set(changed) <= EXTENSIBLE
    return lines, extensible


def write_trial(trial: Trial) -> dict[str, Any]:
    """Writes a trial as a row: columns for what queries ask for, and JSON in ``details`` for everything else."""
    curve = trial.curve
    return {
        "number": trial.number,
        "state": str(trial.state),
        "origin": trial.origin,
        "value": trial.value,
        "worker": trial.worker,
        "retry_of": trial.retry_of,
        "params": to_json(trial.params),
        "details": to_json(
            {
                "seed": trial.seed,
                "curve": [curve.steps, curve.values, curve.progress] if len(curve) else [],
                "outcomes": dict(trial.outcomes),
                "cost": trial.cost,
                "error": trial.error,
                "reason": trial.reason,
                "cause": trial.cause,
                "notes": dict(trial.notes),
                "started": trial.started,
                "finished": trial.finished,
            }
        ),
    }


def read_trial(row: Mapping[str, Any], space: SearchSpace | None = None) -> Trial:
    """Reads the trial that :func:`write_trial` wrote; with a ``space``, as :func:`as_seen_by` that space.

    Raises:
        SchemaError: the row cannot be read.
    """
    try:
        details = json.loads(row["details"])
        details["curve"] = Curve(*map(tuple, details["curve"]))
        details["cause"] = None if details["cause"] is None else Cause(details["cause"])
        trial = Trial(
            number=row["number"],
            params=json.loads(row["params"]),
            origin=row["origin"],
            state=TrialState(row["state"]),
            value=row["value"],
            worker=row["worker"],
            retry_of=row["retry_of"],
            **details,
        )
    except (ValueError, TypeError, KeyError) as error:
        raise SchemaError(f"trial {row.get('number')} cannot be read ({error})") from error
    return trial if space is None else as_seen_by(trial, space)


def is_same_record(trial: Trial, other: Trial) -> bool:
    """Tells whether two trials are written alike; unlike ``==``, nan is the same as nan."""
    return write_trial(trial) == write_trial(other)


def as_seen_by(trial: Trial, space: SearchSpace) -> Trial:
    """Shows a trial as it counts in a study with this space.

    A trial that does not fit is LOST: it stays on record, with all that was measured, and is used for nothing.
    """
    if trial.state is TrialState.LOST:
        return trial
    try:
        space.validate(trial.params)
    except ParamsError as error:
        reason = "outside the space"
        return replace(trial, state=TrialState.LOST, cause=Cause.OUTSIDE, reason=reason, error=str(error))
    return trial


def _is_same(key: str, old: Any, new: Any) -> bool:
    """Compares a field: as text, because 1, 1.0 and True are different choices; as bounds, 1 and 1.0 are the same."""
    if key in ("low", "high"):
        return bool(old == new)
    if key == "when":
        old, new = ({name: sorted(map(to_json, when[name])) for name in sorted(when)} for when in (old, new))
    return to_json(old) == to_json(new)


def _list_fields(parameter: Parameter) -> dict[str, Any]:
    """Lists a parameter's fields as JSON values; its bounds become plain numbers, whatever library they came from."""
    kind = type(parameter).__name__
    when = {parent: list(values) for parent, values in parameter.when.items()}
    if isinstance(parameter, Categorical):
        return {"kind": kind, "choices": list(parameter.choices), "ordered": parameter.ordered, "when": when}
    assert isinstance(parameter, (Real, Integer)), describe(parameter)
    bounds = {"low": to_python(parameter.low), "high": to_python(parameter.high)}
    return {"kind": kind, **bounds, "prior": parameter.prior, "special": list(parameter.special), "when": when}


def _make_parameter(entry: dict[str, Any]) -> Parameter:
    parameter: Parameter = KINDS[entry.pop("kind")](**entry)
    return parameter
