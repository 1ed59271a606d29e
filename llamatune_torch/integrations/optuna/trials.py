"""One trial to and from Optuna: ``to_frozen_trial(trial, space)`` and ``from_frozen_trial(frozen, number, ...)``.

An Optuna parameter has the same kind of distribution in all trials, and no special values. A special value is therefore
written as a parameter of its own, the choice ``"weight_decay (special)"``. The plain name is absent from that trial.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState

from llamatune_torch.curve import Curve
from llamatune_torch.integrations.optuna.spaces import to_choice
from llamatune_torch.parameter_base import Parameter, type_key
from llamatune_torch.parameters import Categorical, Integer, Real
from llamatune_torch.space import Params, SearchSpace
from llamatune_torch.storage.serialization import to_json
from llamatune_torch.trial import KEEPERS_OWN, Cause, Direction, Outcome, Trial, TrialState, as_outcome, cause_of

#: The states of trials that are written, as Optuna calls them.
STATES = {
    TrialState.COMPLETE: OptunaState.COMPLETE,
    TrialState.STOPPED: OptunaState.PRUNED,
    TrialState.FAILED: OptunaState.FAIL,
}
#: The end of the name of the choice among a parameter's special values.
SPECIAL = " (special)"


def to_frozen_trial(trial: Trial, space: SearchSpace) -> FrozenTrial:
    """Converts a finished trial to one that ``optuna.Study.add_trial`` takes."""
    params, distributions = {}, {}
    for name, value in trial.params.items():
        name, written, distribution = _write_parameter(name, space[name], value)
        params[name], distributions[name] = written, distribution
    curve = {round(step): (value, progress) for step, value, progress in trial.curve}
    exported = create_trial(
        state=STATES[trial.state],
        value=trial.value if trial.state is TrialState.COMPLETE else None,  # infinity too: Optuna takes all but nan
        params=params,
        distributions=distributions,
        intermediate_values={step: value for step, (value, _) in curve.items()},
        user_attrs=_write_attributes(trial, [progress for _, progress in curve.values()]),
    )
    # Optuna wants both times; where they are unknown, the trial took what it cost and ended now.
    cost = trial.cost or 0.0
    finished = time.time() if trial.started is None else trial.started + cost
    finished = finished if trial.finished is None else trial.finished
    started = finished - cost if trial.started is None else trial.started
    exported.datetime_start, exported.datetime_complete = _to_datetime(started), _to_datetime(finished)
    return exported


def from_frozen_trial(
    frozen: FrozenTrial, number: int, space: SearchSpace, direction: Direction, exported: bool = False
) -> Trial:
    """Converts a finished Optuna trial to a trial with the origin "added".

    Args:
        frozen: the Optuna trial.
        number: the number of the new trial.
        space: the space that its parameters must fit.
        direction: the direction of its study.
        exported: whether its study was written by ``to_optuna``, so that its user attributes are the trial's own.

    Raises:
        ParamsError: the parameters do not fit the space.
    """
    params = space.validate(_read_params(frozen, space))
    own = exported and "seed" in frozen.user_attrs
    attributes = frozen.user_attrs if own else {}
    started, finished = (
        None if moment is None else moment.timestamp() for moment in (frozen.datetime_start, frozen.datetime_complete)
    )
    lasted = None if own or started is None or finished is None else finished - started
    pruned = frozen.state == OptunaState.PRUNED
    outcome = Outcome() if pruned else _read_outcome(frozen, attributes, direction)
    ended = TrialState.FAILED if outcome.value is None else TrialState.COMPLETE
    curve = _read_curve(frozen, attributes.get("progress"))
    return Trial(
        number,
        params,
        seed=attributes.get("seed", 0),
        origin="added",
        state=TrialState.STOPPED if pruned else ended,
        value=outcome.value,
        curve=curve,
        reached=curve.reached if pruned else 0.0,
        outcomes=attributes.get("outcomes", {}),
        cost=attributes.get("cost", lasted),
        std=attributes.get("std"),
        error=outcome.error,
        reason=attributes.get("reason", "pruned") if pruned else outcome.reason,
        cause=outcome.cause,
        notes=attributes.get("notes", {}),
        started=started,
        finished=finished,
    )


def _write_parameter(name: str, parameter: Parameter, value: Any) -> tuple[str, Any, BaseDistribution]:
    """The name of a parameter in Optuna, its value as Optuna holds it, and its distribution."""
    if isinstance(parameter, Categorical):
        choices = _choices(parameter)
        number = [type_key(choice) for choice in parameter.choices].index(type_key(value))
        return name, choices[number], CategoricalDistribution(choices)
    assert isinstance(parameter, (Real, Integer))
    if value in parameter.special:
        return name + SPECIAL, value, CategoricalDistribution(parameter.special)
    log = parameter.prior == "log-uniform"
    if isinstance(parameter, Integer):
        if parameter.powers_of is not None:  # Optuna knows no powers
            return name, value, CategoricalDistribution(parameter.values_in_range())
        return name, value, IntDistribution(parameter.low, parameter.high, log=log, step=parameter.step)
    return name, value, FloatDistribution(parameter.low, parameter.high, log=log)


def _choices(parameter: Categorical) -> list[Any]:
    """The choices as Optuna holds them: as JSON, if some are lists or dicts, or equal for Python, as 1 and True."""
    plain = not any(isinstance(choice, (list, dict)) for choice in parameter.choices)
    distinct = plain and len(set(parameter.choices)) == len(parameter.choices)
    return list(parameter.choices) if distinct else [to_json(choice) for choice in parameter.choices]


def _write_attributes(trial: Trial, progress: Sequence[float | None]) -> dict[str, Any]:
    """The fields of a trial that Optuna has no place for, without those that are empty."""
    attributes = {
        "number": trial.number,
        "seed": trial.seed,
        "origin": trial.origin,
        "cost": trial.cost,
        "std": trial.std,
        "reason": trial.reason,
        "cause": trial.cause,
        "error": trial.error,
        "outcomes": dict(trial.outcomes) or None,
        "notes": dict(trial.notes) or None,
        "progress": None if all(share is None for share in progress) else progress,
    }
    # Through `to_json`, because outcomes may be numpy's or torch's numbers.
    return {key: json.loads(to_json(value)) for key, value in attributes.items() if value is not None}


def _to_datetime(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _read_outcome(frozen: FrozenTrial, attributes: dict[str, Any], direction: Direction) -> Outcome:
    if frozen.state == OptunaState.FAIL:
        reason = attributes.get("reason", "failed in Optuna")
        cause = attributes.get("cause")
        cause = cause_of(reason) if cause is None or cause in KEEPERS_OWN else Cause(cause)
        return Outcome.failure(reason, attributes.get("error"), cause=cause)
    return as_outcome(frozen.value, direction)  # infinities on the good side are failures here


def _read_curve(frozen: FrozenTrial, progress: Sequence[float | None] | None) -> Curve:
    points = sorted(frozen.intermediate_values.items())
    shares = [None] * len(points) if progress is None or len(progress) != len(points) else progress
    return Curve(tuple(float(step) for step, _ in points), tuple(value for _, value in points), tuple(shares))


def _read_params(frozen: FrozenTrial, space: SearchSpace) -> Params:
    """The parameters by their names in the space, special values among them, not yet validated."""
    params = {}
    for name, value in frozen.params.items():
        plain_name = name.removesuffix(SPECIAL)
        if name not in space.names and plain_name in space.names and space[plain_name].special:
            params[plain_name] = value
        elif name in space.names and isinstance(parameter := space[name], Categorical):
            params[name] = _read_choice(parameter, value, frozen.distributions[name])
        else:
            params[name] = value
    return params


def _read_choice(parameter: Categorical, value: Any, distribution: BaseDistribution) -> Any:
    """The choice that a value stands for, or the value itself if it stands for none."""
    if isinstance(distribution, CategoricalDistribution):
        if [*map(type_key, distribution.choices)] == [*map(type_key, _choices(parameter))]:
            return parameter.choices[distribution.choices.index(value)]
        return to_choice(value)
    # A value of a float with a step: Optuna's samplers differ in the last digits.
    numbers = [c for c in parameter.choices if isinstance(c, (int, float)) and not isinstance(c, bool)]
    nearest = min(numbers, key=lambda number: abs(number - value), default=None)
    if nearest is None or abs(nearest - value) > 1e-9 * (max(numbers) - min(numbers)):
        return value
    return nearest
