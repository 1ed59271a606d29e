"""Spaces and trials as JSON, without loss: what ``storage.py`` writes and reads.

The law, kept by a property test: ``read_space(write_space(space)) == space``, and the same for trials. Text is ASCII,
so that no database stumbles over an odd character in an error message.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llamatune_torch.errors import ParamsError, SchemaError, SpaceError
from llamatune_torch.parameter_base import Parameter, describe, to_python
from llamatune_torch.parameters import Categorical, Integer, Real
from llamatune_torch.space import SearchSpace
from llamatune_torch.trial import Cause, Curve, Trial, TrialState

KINDS: Mapping[str, type[Any]] = {"Real": Real, "Integer": Integer, "Categorical": Categorical}

#: What ``extend=True`` may change about a parameter.
EXTENSIBLE = {"low", "high", "special", "choices"}


def write(value: Any) -> str:
    """JSON on one line; numpy's and torch's scalars as the numbers they hold, anything else that is odd as its repr."""
    return json.dumps(
        value, default=lambda odd: repr(odd) if to_python(odd) is odd else to_python(odd), separators=(",", ":")
    )


def write_space(space: SearchSpace) -> str:
    """A space as JSON: its parameters in order, each with its kind and what it was made from.

    Raises:
        SpaceError: a parameter is of a class of the user's own, so nobody else could read it.
    """
    for name, parameter in space.parameters.items():
        if type(parameter) not in KINDS.values():
            raise SpaceError(f"parameter {name!r} cannot be stored: it must be one of {list(KINDS)}, not {parameter!r}")
    return write([{"name": name, **_fields(parameter)} for name, parameter in space.parameters.items()])


def read_space(text: str) -> SearchSpace:
    """The space that :func:`write_space` wrote.

    Raises:
        SchemaError: it was not that function.
    """
    try:
        return SearchSpace({entry.pop("name"): _parameter(entry) for entry in json.loads(text)})
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # a SpaceError is a ValueError
        raise SchemaError(f"the stored search space cannot be read ({error}): {text[:200]}") from error


def differences(stored: SearchSpace, given: SearchSpace) -> tuple[list[str], bool]:
    """What differs between two spaces, a line each, and whether ``extend=True`` may make up for it."""
    lines, extensible = [], stored.names == given.names
    if stored.names != given.names:
        lines.append(f"parameters: stored {stored.names}, given {given.names}")
    for name in stored.names:
        if name not in given.names:
            continue
        old, new = _fields(stored[name]), _fields(given[name])
        # As text, because 1, 1.0 and True are different choices; as bounds, 1 and 1.0 are the same.
        changed = [key for key in old if old[key] != new.get(key) or _text(key, old[key]) != _text(key, new[key])]
        if changed:
            lines.append(f"{name}: stored {stored[name]!r}, given {given[name]!r}")
            extensible = extensible and set(changed) <= EXTENSIBLE
    return lines, extensible


def write_trial(trial: Trial) -> dict[str, Any]:
    """A trial as a row: what is searched for in columns of its own, everything else as JSON in ``details``."""
    curve = trial.curve
    return {
        "number": trial.number,
        "state": str(trial.state),
        "origin": trial.origin,
        "value": trial.value,
        "worker": trial.worker,
        "retry_of": trial.retry_of,
        "params": write(trial.params),
        "details": write(
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
    """The trial that :func:`write_trial` wrote.

    With a ``space`` that has changed since and that the trial does not fit, it shows as LOST: on record, with all that
    was measured, and used for nothing.

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


def as_seen_by(trial: Trial, space: SearchSpace) -> Trial:
    """The trial as it shows in a study with this space: LOST, if it does not fit."""
    if trial.state is TrialState.LOST:
        return trial
    try:
        space.validate(trial.params)
    except ParamsError as error:
        reason = "outside the space"
        return replace(trial, state=TrialState.LOST, cause=Cause.OUTSIDE, reason=reason, error=str(error))
    return trial


def _text(key: str, value: Any) -> str:
    return "" if key in ("low", "high") else write(value)


def _fields(parameter: Parameter) -> dict[str, Any]:
    """A parameter as a dict of JSON values; the bounds are plain numbers, whatever library they came from."""
    kind = type(parameter).__name__
    when = {parent: list(values) for parent, values in parameter.when.items()}
    if isinstance(parameter, Categorical):
        return {"kind": kind, "choices": list(parameter.choices), "ordered": parameter.ordered, "when": when}
    assert isinstance(parameter, (Real, Integer)), describe(parameter)
    bounds = {"low": to_python(parameter.low), "high": to_python(parameter.high)}
    return {"kind": kind, **bounds, "prior": parameter.prior, "special": list(parameter.special), "when": when}


def _parameter(entry: dict[str, Any]) -> Parameter:
    parameter: Parameter = KINDS[entry.pop("kind")](**entry)
    return parameter
