"""The space of an Optuna study, inferred from its trials: each says which values its parameters could have had."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from llamatune_torch.errors import SpaceError
from llamatune_torch.parameter_base import Parameter, as_json, type_key
from llamatune_torch.parameters import Categorical, Integer, Prior, Real
from llamatune_torch.space import SearchSpace
from llamatune_torch.storage.serialization import to_json

#: Up to how many values a float with a step becomes an ordered choice among them.
MAX_STEPS = 100


def to_choice(choice: Any) -> Any:
    """Converts a choice to one that ``Categorical`` holds: to the text of its JSON, if it is not finite or no JSON."""
    try:
        return as_json(choice)
    except SpaceError:
        return to_json(choice)


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
        return Categorical(_drop_duplicates([to_choice(choice) for choice in first.choices]), when=when)
    low, high = min(d.low for d in distributions), max(d.high for d in distributions)
    if low == high:
        return Categorical([low], when=when)
    prior: Prior = "log-uniform" if first.log else "uniform"
    if isinstance(first, IntDistribution):
        return Integer(low, high, prior=prior, step=first.step if _have_one_grid(distributions, low) else 1, when=when)
    if first.step is None or (high - low) / first.step > MAX_STEPS - 0.5 or not _have_one_grid(distributions, low):
        return Real(low, high, prior=prior, when=when)
    values = [low + k * first.step for k in range(round((high - low) / first.step) + 1)]
    # 0.3, not 0.30000000000000004
    return Categorical([float(f"{value:.12g}") for value in values], ordered=True, when=when)


def _have_one_grid(distributions: Sequence[Any], low: float) -> bool:
    """True if all have the same step, and their bounds are a number of steps apart."""
    step = distributions[0].step
    ratios = [(bound - low) / step for d in distributions for bound in (d.low, d.high)]
    return all(d.step == step for d in distributions) and all(abs(r - round(r)) < 1e-8 for r in ratios)


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
        values = _drop_duplicates([to_choice(trial.params[parent]) for trial in having])
        without = _drop_duplicates([to_choice(trial.params[parent]) for trial in lacking if parent in trial.params])
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
