"""Spaces and trials as JSON, without loss: the content of the database's columns.

The law, kept by a property test: ``read_space(write_space(space)) == space``, and the same for trials. Text is ASCII,
so that no database stumbles over an odd character in an error message.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, cast, get_args

from llamatune_torch.constraints import Constraint, Estimate
from llamatune_torch.curve import Curve
from llamatune_torch.errors import (
    ConstraintError,
    ObjectiveError,
    OutcomeError,
    ParamsError,
    RuleError,
    SchemaError,
    SpaceError,
)
from llamatune_torch.objectives import Objective
from llamatune_torch.parameter_base import Parameter, describe, to_python
from llamatune_torch.parameters import Categorical, Integer, Real
from llamatune_torch.rules import Linear, Rule, Unknown, name_of_rule
from llamatune_torch.space import SearchSpace
from llamatune_torch.storage.validation import (
    ODD,
    Check,
    clip,
    mapping,
    number,
    optional,
    parsed,
    refuse,
    scalars,
    sequence,
    shorten,
    take,
    text,
    whole,
    words,
)
from llamatune_torch.study import UNCHANGED, End, Extension, Goal
from llamatune_torch.trial import Cause, Origin, Trial, TrialState

KINDS: Mapping[str, type[Any]] = {"Real": Real, "Integer": Integer, "Categorical": Categorical}

#: The fields of a parameter that ``extend`` may change.
EXTENSIBLE = {"low", "high", "special", "step", "powers_of", "choices", "belief"}


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


def read_space(written: str) -> SearchSpace:
    """Reads the space that :func:`write_space` wrote.

    Raises:
        SchemaError: the text is anything else.
    """
    try:
        return SearchSpace({entry.pop("name"): _make_parameter(entry) for entry in json.loads(written)})
    except ODD as error:  # a SpaceError is a ValueError
        raise SchemaError(f"the stored search space cannot be read ({clip(error)}): {str(written)[:200]}") from error


def compare_spaces(stored: SearchSpace, given: SearchSpace) -> tuple[list[str], bool]:
    """Lists the differences between two spaces, a line each; True if ``extend`` would accept them.

    The order of the parameters is none, nor is that of the parents and their values in a condition.
    """
    lines, extensible = [], True
    if sorted(stored.names) != sorted(given.names):
        lines.append(f"parameters: stored {stored.names}, given {given.names}")
    for name in stored.names:
        if name not in given.names:
            continue
        old, new = _list_fields(stored[name]), _list_fields(given[name])
        changed = [key for key in {**old, **new} if not _is_same(key, old.get(key), new.get(key))]
        if changed:
            lines.append(f"{name}: stored {stored[name]!r}, given {given[name]!r}")
            extensible = extensible and set(changed) <= EXTENSIBLE
    return lines, extensible


def write_extension(extension: Extension) -> dict[str, Any]:
    """Writes what a space has gained and lost as JSON values."""
    return {"values": dict(extension.values), "dropped": list(extension.dropped)}


def read_extension(written: Any, place: str) -> Extension:
    """Reads what :func:`write_extension` wrote; ``place`` names it in errors.

    Raises:
        SchemaError: it is anything else.
    """
    entry = mapping(written, place)
    dropped = take(entry, "dropped", place, sequence)
    return Extension(take(entry, "values", place, mapping), tuple(text(name, place) for name in dropped))


def write_rules(rules: Iterable[Rule]) -> list[str | dict[str, Any]]:
    """Writes rules as JSON values: linear ones as data, functions by name."""
    return [
        {"coefficients": dict(rule.coefficients), "lower": rule.lower, "upper": rule.upper}
        if isinstance(rule, Linear)
        else name_of_rule(rule)
        for rule in rules
    ]


def read_rules(written: Any, place: str) -> tuple[Rule, ...]:
    """Reads what :func:`write_rules` wrote; functions are known by their names alone.

    Raises:
        SchemaError: it is anything else.
    """
    rules: list[Rule] = []
    for entry in sequence(written, place):
        if not isinstance(entry, Mapping):
            rules.append(Unknown(text(entry, place)))
            continue
        lower, upper = (optional(number)(entry.get(bound), place) for bound in ("lower", "upper"))
        try:
            rules.append(Linear(take(entry, "coefficients", place, scalars), lower, upper))
        except RuleError as error:
            raise SchemaError(f"{place}: {clip(error)}") from error
    return tuple(rules)


def write_constraints(constraints: Iterable[Constraint]) -> dict[str, list[float | None]]:
    """Writes limits as JSON values: the lower and the upper bound by the outcome's name."""
    return {limit.name: [limit.lower, limit.upper] for limit in constraints}


def read_constraints(written: Any, place: str) -> tuple[Constraint, ...]:
    """Reads what :func:`write_constraints` wrote; ``place`` names it in errors.

    Raises:
        SchemaError: it is anything else.
    """
    read = []
    for name, bounds in mapping(written, place).items():
        given = [optional(number)(bound, place) for bound in sequence(bounds, place)]
        if len(given) != 2:
            raise refuse(place, "a lower and an upper bound", bounds)
        try:
            read.append(Constraint(name, *given))
        except ConstraintError as error:
            raise SchemaError(f"{place}: {clip(error)}") from error
    return tuple(read)


def write_objectives(goal: Goal) -> list[list[Any]]:
    """Writes the objectives beside the metric as JSON values: name, direction, reference; the metric's own is first."""
    return [[None, None, goal.reference], *([each.name, each.direction, each.reference] for each in goal.others)]


def read_objectives(written: Any, goal: Goal, place: str) -> Goal:
    """Reads what :func:`write_objectives` wrote into a goal; ``place`` names it in errors.

    Raises:
        SchemaError: it is anything else.
    """
    entries = [sequence(entry, place) for entry in sequence(written, place)]
    if any(len(entry) != 3 for entry in entries):
        raise refuse(place, "a name, a direction and a reference each", written)
    try:
        others = tuple(
            Objective(text(name, place), cast(Any, text(direction, place)), optional(number)(reference, place))
            for name, direction, reference in entries[1:]
        )
    except ObjectiveError as error:
        raise SchemaError(f"{place}: {clip(error)}") from error
    reference = optional(number)(entries[0][2], place) if entries else None
    return replace(goal, others=others, reference=reference)


def write_estimates(estimates: Iterable[Estimate]) -> list[list[Any]]:
    """Writes estimates as JSON values: name, parameters, value."""
    return [[estimate.name, dict(estimate.params), estimate.value] for estimate in estimates]


def read_estimates(written: Any, place: str) -> tuple[Estimate, ...]:
    """Reads what :func:`write_estimates` wrote; ``place`` names it in errors.

    Raises:
        SchemaError: it is anything else.
    """
    read = []
    for entry in sequence(written, place):
        if len(fields := sequence(entry, place)) != 3:
            raise refuse(place, "a name, parameters and a value", entry)
        try:
            read.append(Estimate(text(fields[0], place), mapping(fields[1], place), number(fields[2], place)))
        except ConstraintError as error:
            raise SchemaError(f"{place}: {clip(error)}") from error
    return tuple(read)


def read_end(written: Any, place: str) -> End:
    """Reads the end of a search, written as the list of its fields.

    Raises:
        SchemaError: it is anything else.
    """
    fields = sequence(written, place)
    if len(fields) != 2:
        raise refuse(place, "a number of trials and a reason", written)
    return End(whole(fields[0], place), words(fields[1], place))


def write_trial(trial: Trial, *, with_curve: bool = True) -> dict[str, Any]:
    """Writes a trial as a row: columns for what queries ask for, and JSON in ``details`` for everything else.

    Without its curve, which is in a table of its own, it has the number of points.
    """
    curve = trial.curve
    columns = [curve.steps, curve.values, curve.progress] if with_curve and len(curve) else []
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
                **({"curve": columns} if with_curve else {"points": len(curve)}),
                "outcomes": dict(trial.outcomes),
                "cost": trial.cost,
                "error": trial.error,
                "reason": trial.reason,
                "cause": trial.cause,
                "notes": dict(trial.notes),
                "started": trial.started,
                "finished": trial.finished,
                **{name: getattr(trial, name) for name in _STAGES if getattr(trial, name) != _STAGES[name].default},
            }
        ),
    }


def read_trial(
    row: Mapping[str, Any],
    space: SearchSpace | None = None,
    extension: Extension = UNCHANGED,
    curve: Curve | None = None,
) -> Trial:
    """Reads the trial that :func:`write_trial` wrote; with a ``space``, as :func:`as_seen_by` that space.

    Args:
        row: the columns.
        space: the present one.
        extension: what that has gained and lost since trials were written.
        curve: what the table of points has of the trial, if its row was written without its curve.

    Raises:
        SchemaError: the row cannot be read, or the curve has not as many points as it says.
    """
    place = f"trial {shorten(row.get('number'))} cannot be read"
    details = mapping(parsed(row.get("details"), f"{place}: details"), f"{place}: details")
    if "points" in details:
        length = take(details, "points", place, whole)
        details["curve"] = (curve or Curve()).up_to(length)
        if len(details["curve"]) != details.pop("points"):
            raise SchemaError(f"{place}: the database has {len(details['curve'])} of the {length} points of its curve")
    facts = {name: take(details, name, place, check) for name, check in _DETAILS.items()}
    facts |= {name: take(details, name, place, stage.check) for name, stage in _STAGES.items() if name in details}
    if unknown := sorted(details.keys() - _DETAILS.keys() - _STAGES.keys()):
        raise SchemaError(f"{place}: it has {shorten(unknown)}, which this version does not know")
    trial = Trial(
        number=take(row, "number", place, whole),
        params=mapping(parsed(row.get("params"), f"{place}: params"), f"{place}: params"),
        origin=take(row, "origin", place, _read_origin),
        state=take(row, "state", place, _read_state),
        value=take(row, "value", place, optional(number)),
        worker=take(row, "worker", place, optional(text)),
        retry_of=take(row, "retry_of", place, optional(whole)),
        **facts,
    )
    if trial.state is TrialState.COMPLETE and (trial.value is None or math.isnan(trial.value)):
        raise refuse(f"{place}: the value of a complete trial", "a number", trial.value)
    return trial if space is None else as_seen_by(trial, space, extension)


def is_same_record(trial: Trial, other: Trial) -> bool:
    """Tells whether two trials are written alike; unlike ``==``, nan is the same as nan."""
    return write_trial(trial) == write_trial(other)


def as_seen_by(trial: Trial, space: SearchSpace, extension: Extension = UNCHANGED) -> Trial:
    """Shows a trial as it counts in a study with this space.

    It has the values that its study says old trials have had; those of parameters that are no longer in the space
    become notes. A trial that does not fit is LOST: it stays on record, with all that was measured, and is used for
    nothing.
    """
    dropped = {f"params.{name}": repr(value) for name, value in trial.params.items() if name in extension.dropped}
    params = extension.applied_to(trial.params, space)
    if dropped or params is not trial.params:
        trial = replace(trial, params=params, notes={**trial.notes, **dropped})
    if trial.state is TrialState.LOST:
        return trial
    try:
        space.validate(trial.params)
    except ParamsError as error:
        reason = "outside the space"
        return replace(trial, state=TrialState.LOST, cause=Cause.OUTSIDE, reason=reason, error=str(error))
    return trial


def _read_state(value: Any, place: str) -> TrialState:
    if value not in list(TrialState):
        raise refuse(place, f"one of {[str(state) for state in TrialState]}", value)
    return TrialState(value)


def _read_origin(value: Any, place: str) -> Origin:
    for origin in get_args(Origin):
        if value == origin:
            return cast(Origin, origin)
    raise refuse(place, f"one of {list(get_args(Origin))}", value)


def _read_cause(value: Any, place: str) -> Cause:
    if value not in list(Cause):
        raise refuse(place, f"one of {[str(cause) for cause in Cause]}", value)
    return Cause(value)


def _read_curve(value: Any, place: str) -> Curve:
    if isinstance(value, Curve):
        return value
    columns = [sequence(column, place) for column in sequence(value, place)]
    if len(columns) not in (0, 3) or len({len(column) for column in columns}) > 1:
        raise refuse(place, "three lists of one length", value)
    for column, check in zip(columns, (number, number, optional(number)), strict=False):
        for entry in column:
            check(entry, place)
    try:
        return Curve(*columns)
    except OutcomeError as error:
        raise SchemaError(f"{place}: {clip(error)}") from error


#: The fields of a trial in ``details``.
_DETAILS: Mapping[str, Check[Any]] = {
    "seed": whole,
    "curve": _read_curve,
    "outcomes": scalars,
    "cost": optional(number),
    "error": optional(words),
    "reason": optional(words),
    "cause": optional(_read_cause),
    "notes": scalars,
    "started": optional(number),
    "finished": optional(number),
}


def _read_share(value: Any, place: str) -> float:
    share = number(value, place)
    if not 0 <= share <= 1:
        raise refuse(place, "a share in [0, 1]", value)
    return share


def _read_bounds(value: Any, place: str) -> tuple[float, float]:
    bounds = [number(bound, place) for bound in sequence(value, place)]
    if len(bounds) != 2 or not bounds[0] < bounds[1]:
        raise refuse(place, "a lower and a higher bound", value)
    return bounds[0], bounds[1]


def _read_goal(value: Any, place: str) -> float:
    if _read_share(value, place) == 0:
        raise refuse(place, "a share in (0, 1]", value)
    return float(value)


def _read_std(value: Any, place: str) -> float:
    std = number(value, place)
    if not 0 <= std < math.inf:
        raise refuse(place, "a finite number >= 0", value)
    return std


def _read_count(value: Any, place: str) -> int:
    if whole(value, place) < 0:
        raise refuse(place, "an integer >= 0", value)
    return int(value)


class _Stage(NamedTuple):
    check: Check[Any]
    default: Any


#: Further fields, written where they say something: of a trial that does not train to its end in one go, and others.
_STAGES: Mapping[str, _Stage] = {
    "until": _Stage(_read_goal, 1.0),
    "reached": _Stage(_read_share, 0.0),
    "pauses": _Stage(_read_count, 0),
    "resumed": _Stage(optional(number), None),
    "bounds": _Stage(_read_bounds, None),
    "std": _Stage(_read_std, None),
}


def _is_same(key: str, old: Any, new: Any) -> bool:
    """Compares a field: as text, because 1, 1.0 and True are different choices; as bounds, 1 and 1.0 are the same."""
    if key in ("low", "high"):
        return bool(old == new)
    if key == "values" and old is not None and new is not None:
        # Values that one process cannot write as JSON are compared by their labels alone.
        shared = old.keys() & new.keys()
        old, new = ({label: values[label] for label in sorted(shared)} for values in (old, new))
    if key == "when":
        old, new = ({name: sorted(map(to_json, when[name])) for name in sorted(when)} for when in (old, new))
    return to_json(old) == to_json(new)


def _list_fields(parameter: Parameter) -> dict[str, Any]:
    """Lists a parameter's fields as JSON values; its bounds become plain numbers, whatever library they came from."""
    kind = type(parameter).__name__
    when = {parent: list(values) for parent, values in parameter.when.items()}
    if isinstance(parameter, Categorical):
        # Of labels, the values that are JSON.
        values = {"values": parameter.json_values}
        return {"kind": kind, "choices": list(parameter.choices), "ordered": parameter.ordered, "when": when} | values
    assert isinstance(parameter, (Real, Integer)), describe(parameter)
    bounds = {"low": to_python(parameter.low), "high": to_python(parameter.high), "prior": parameter.prior}
    grid = {"step": parameter.step, "powers_of": parameter.powers_of} if isinstance(parameter, Integer) else {}
    belief = {"belief": parameter.belief} if parameter.belief is not None else {}  # earlier versions know none
    return {"kind": kind, **bounds, "special": list(parameter.special), "when": when, **grid, **belief}


def _make_parameter(entry: dict[str, Any]) -> Parameter:
    parameter: Parameter = KINDS[entry.pop("kind")](**entry)
    return parameter
