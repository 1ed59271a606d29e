"""The space of an Optuna study, inferred from its trials: each says which values its parameters could have had."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from llamatune_torch.errors import SpaceError
from llamatune_torch.parameter_base import Parameter, type_key
from llamatune_torch.parameters import Categorical, Integer, Real
from llamatune_torch.space import SearchSpace
from llamatune_torch.storage.serialization import to_json

#: Up to how many values a number with a step becomes an ordered choice among them.
MAX_STEPS = 100


def to_scalar(choice: Any) -> Any:
    """Converts a choice to one that ``Categorical`` holds: to JSON, if it is no scalar or not finite."""
    if isinstance(choice, float):
        return choice if math.isfinite(choice) else to_json(choice)
    return choice if choice is None or isinstance(choice, (str, int)) else to_json(choice)


def infer_space(study: str, trials: Sequence[FrozenTrial]) -> SearchSpace:
    """Infers the space of an Optuna study, by the rules that ``from_optuna`` lists.

    Args:
        study: the name of the study, for messages.
        trials: its finished trials.

    Raises:
        SpaceError: there are no trials, or a parameter's condition cannot be told.
    """
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    if not names:
        raise SpaceError(f"Optuna study {study!r} has no finished trial with parameters: give a space")
    parameters = {}
    for name in names:
        try:
            distributions = [trial.distributions[name] for trial in trials if name in trial.params]
            parameters[name] = _infer_parameter(distributions, _infer_condition(name, trials))
        except SpaceError as error:
            raise SpaceError(f"parameter {name!r} of Optuna study {study!r}: {error}; give a space") from None
    return SearchSpace(parameters)


def _infer_parameter(distributions: Sequence[Any], when: dict[str, list[Any]]) -> Parameter:
    """A parameter from its distributions in all trials, which Optuna keeps to one kind."""
    first = distributions[0]
    if isinstance(first, CategoricalDistribution):
        return Categorical(_drop_duplicates([to_scalar(choice) for choice in first.choices]), when=when)
    low, high = min(d.low for d in distributions), max(d.high for d in distributions)
    if low == high:
        return Categorical([low], when=when)
    steps = _list_steps(distributions, low, high)
    if steps:
        return Categorical(steps, ordered=True, when=when)
    kind = Integer if isinstance(first, IntDistribution) else Real
    return kind(low, high, prior="log-uniform" if first.log else "uniform", when=when)


def _list_steps(distributions: Sequence[Any], low: float, high: float) -> list[Any]:
    """Lists the values of a number with a step; none for a range, more than ``MAX_STEPS``, or steps that differ."""
    step = distributions[0].step
    whole = isinstance(distributions[0], IntDistribution)
    if step is None or (whole and step == 1) or (high - low) / step > MAX_STEPS - 0.5:
        return []
    for distribution in distributions:
        ratio = (distribution.low - low) / step
        if distribution.step != step or abs(ratio - round(ratio)) > 1e-8:
            return []
    values = [low + k * step for k in range(round((high - low) / step) + 1)]
    return values if whole else [float(f"{value:.12g}") for value in values]  # 0.3, not 0.30000000000000004


def _infer_condition(name: str, trials: Sequence[FrozenTrial]) -> dict[str, list[Any]]:
    """The ``when`` of a parameter, from the trials that have it and those that lack it.

    Raises:
        SpaceError: some lack it, and no choice before it explains which, or several do.
    """
    having = [trial for trial in trials if name in trial.params]
    # A trial that failed may have failed before it came to the parameter.
    lacking = [trial for trial in trials if name not in trial.params and trial.state != OptunaState.FAIL]
    if not lacking:
        return {}
    before = [list(trial.params)[: list(trial.params).index(name)] for trial in having]
    explanations = {}
    for parent in before[0]:
        distribution = having[0].distributions[parent]
        if not isinstance(distribution, CategoricalDistribution) or not all(parent in names for names in before):
            continue
        values = _drop_duplicates([to_scalar(trial.params[parent]) for trial in having])
        without = _drop_duplicates([to_scalar(trial.params[parent]) for trial in lacking if parent in trial.params])
        overlap = {type_key(value) for value in values} & {type_key(value) for value in without}
        # With all of the parent's values, it would only repeat the parent's own condition.
        if not overlap and len(values) < len(distribution.choices):
            explanations[parent] = values
    if len(explanations) != 1:
        why = f"each of {list(explanations)} may say when" if explanations else "no single choice before it says when"
        raise SpaceError(f"it is absent from {len(lacking)} of {len(trials)} trials, and {why}")
    return explanations


def _drop_duplicates(values: Sequence[Any]) -> list[Any]:
    return list({type_key(value): value for value in values}.values())
