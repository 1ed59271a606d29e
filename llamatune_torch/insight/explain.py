"""Explanation of a study, from its record alone: the same study always tells the same.

    study -> data -> the search's surrogate   -> trust, progress
                  -> a sum of terms           -> importance, interactions, effects

Over the whole space the terms are those of all trials. Near the best they are those of the better half, over what the
best third span: far away often one parameter alone decides, and hides all else.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from llamatune_torch.engine.data import TrainingData, in_the_metric, signed_values, training_data, with_own_modes
from llamatune_torch.engine.filling import knows_nothing
from llamatune_torch.engine.outcome import standardize
from llamatune_torch.engine.suggest import fit_surrogate
from llamatune_torch.insight.anova import draw_functions
from llamatune_torch.insight.decompose import Decomposition
from llamatune_torch.insight.effects import Scale, effects_of, failing_along, surface
from llamatune_torch.insight.importance import rank_parameters
from llamatune_torch.insight.progress import Foresight, look_back
from llamatune_torch.insight.records import Effect, Importance, Insight, Interaction, Surface
from llamatune_torch.insight.region import Region, axes_of
from llamatune_torch.insight.trust import judge
from llamatune_torch.seeds import derived_seed
from llamatune_torch.settings import Settings
from llamatune_torch.study import Study

FEWEST = 8  # completed trials, from which something is said about parameters
FEWEST_NEAR = 16  # completed trials, from which something is said about the better half
MOST_USED = 200  # trials that have completed, and as many that have failed
NUM_SURFACES = 3
FAR_OUT = 100.0  # quartile distances from the median


@with_own_modes
def explain(study: Study, settings: Settings | None = None) -> Insight:
    """Tells all that is known of ``study``.

    Args:
        study: any, also an empty one.
        settings: the seed; by default that of ``Settings()``.

    Example:
        >>> insight = explain(tuner.study)
        >>> insight.importance[0].name, insight.importance[0].total
        ('learning_rate', Interval(value=0.83, low=0.71, high=0.93))
    """
    settings = settings or Settings()
    n = len(study.completed)
    if n < FEWEST:
        why = f"{n} trials have completed: {FEWEST} tell something" if n else "no trial has completed"
        everything = ("importance", "near", "interactions", "effects", "effects_near", "surfaces", "trust", "random")
        return Insight(study, look_back(study, settings, None), missing=dict.fromkeys(everything, why))
    missing: dict[str, str] = {}
    data = _thin(training_data(study, torch.device("cpu"), []))
    surrogate = fit_surrogate(data)
    to_metric = partial(in_the_metric, study, data)
    foresight, trust = None, None
    if bool((data.Y == data.Y[0]).all()):
        missing |= dict.fromkeys(("trust", "random"), "all values are the same")
    else:
        trust = judge(study, data, surrogate, to_metric)
        foresight = Foresight(study, data, surrogate, to_metric, settings)
    if foresight is not None and knows_nothing(surrogate):
        missing["random"] = "the values say nothing about parameters yet"
        foresight = None
    with torch.no_grad():
        progress = look_back(study, settings, foresight)
    whole = _look(study, data, settings, near=False)
    if whole is None:
        why = "all values are the same" if study.space.varied_columns else "all parameters are constants"
        missing |= dict.fromkeys(("importance", "interactions", "effects", "surfaces"), why)
    near = _look(study, data, settings, near=True) if n >= FEWEST_NEAR else None
    if near is None:
        why = f"{n} trials have completed: {FEWEST_NEAR} tell something" if n < FEWEST_NEAR else "the best are alike"
        missing |= dict.fromkeys(("near", "effects_near"), why)
    whole, near = whole or View(), near or View()
    if not whole.interactions:
        missing.setdefault("interactions", "there is one parameter")
        missing.setdefault("surfaces", "there is one parameter")
    return Insight(
        study,
        progress,
        importance=whole.importance,
        near=near.importance,
        interactions=whole.interactions,
        effects=whole.effects,
        effects_near=near.effects,
        surfaces=whole.surfaces,
        trust=trust,
        used=min(n, MOST_USED),
        missing=missing,
    )


class View(NamedTuple):
    """The parameters as seen in one region."""

    importance: tuple[Importance, ...] = ()
    interactions: tuple[Interaction, ...] = ()
    effects: tuple[Effect, ...] = ()
    surfaces: tuple[Surface, ...] = ()


def _look(study: Study, data: TrainingData, settings: Settings, near: bool) -> View | None:
    """The parts of a function in one region; ``None`` where nothing varies."""
    Y = signed_values(study)[data.rows]
    Y = Y.where(Y.isfinite(), Y[Y.isfinite()].min() if bool(Y.isfinite().any()) else 0.0)
    X, best = data.X, Y.argsort(descending=True, stable=True)
    region = Region(study.space)
    if near:
        region = Region(study.space, X[best[: len(Y) // 3]])
        rows = best[: len(Y) // 2].sort().values
        X, Y = X[rows], Y[rows]
    scale = Y.abs().max().clamp_min(1e-300)  # squares of a perplexity of 1e200 overflow
    Y = fence(Y / scale)
    columns = [j for j in study.space.varied_columns if region.varies(j)]
    if not columns or bool((Y == Y[0]).all()):
        return None
    # Parents of those that vary are looked at too: they say where others are active.
    trials = axes_of(study.space, columns, X.T[columns], X.T[columns], region.cube.active(X).T[columns])
    axes = region.axes(columns)
    seed = derived_seed(settings.seed, len(study.trials), 16 + near)
    found = Decomposition(region, columns, draw_functions(axes, trials, standardize(Y), seed))
    to_metric = _linear_to_metric(study, Y, scale)
    importance: list[Importance] = []
    interactions: list[Interaction] = []
    effects: list[Effect] = []
    surfaces: list[Surface] = []
    for subset in found.subsets(seed):
        parts = found.parts(subset)
        alone, pairs = rank_parameters(found, subset, parts)
        importance += alone
        interactions += pairs
        effects += effects_of(found, subset, parts, to_metric)
        if not near:
            names = [study.space.names[j] for j in columns]
            strongest = sorted(pairs, key=lambda pair: -pair.share.value)[:NUM_SURFACES]
            places = [found.pairs.index((names.index(pair.names[0]), names.index(pair.names[1]))) for pair in strongest]
            surfaces += [surface(found, subset, parts, p, to_metric) for p in places]
    order = {each.name: -each.total.value for each in importance}
    share = {each.names: -each.share.value for each in interactions}
    return View(
        tuple(sorted(importance, key=lambda each: order[each.name])),
        tuple(sorted(interactions, key=lambda each: share[each.names])),
        tuple(sorted(failing_along(data, region, effects, seed), key=lambda each: order[each.name])),
        tuple(sorted(surfaces, key=lambda each: share[each.names])[:NUM_SURFACES]),
    )


def fence(Y: Tensor) -> Tensor:
    """Outcomes (``n``, larger is better), none of which is more than ``FAR_OUT`` quartile distances below the median.

    A loss of 1e4 would be all that anything tells about. Chance accuracy is a part of the metric, and stays.
    """
    low, middle, high = torch.quantile(Y, torch.tensor([0.25, 0.5, 0.75], dtype=Y.dtype))
    reach = FAR_OUT * torch.maximum(high - low, Y.max() - middle)
    return Y.clamp_min(middle - reach) if reach > 0 else Y


def _thin(data: TrainingData) -> TrainingData:
    """The same with at most ``MOST_USED`` trials of either kind: a third are the best, the others evenly spread."""
    best = data.Y.argsort(descending=True, stable=True)
    top = best[: MOST_USED // 3]
    rest = best[MOST_USED // 3 :].sort().values
    kept = torch.cat([top, rest[_spread(len(rest), MOST_USED - len(top))]]).sort().values
    failed = _spread(len(data.X_failed), MOST_USED)
    return data._replace(
        X=data.X[kept],
        Y=standardize(data.Y[kept]),
        X_failed=data.X_failed[failed],
        rows=data.rows[kept],
        feasible=data.feasible[kept],
        is_error=data.is_error[failed],
        known_noise=None if data.known_noise is None else data.known_noise[kept],
    )


def _spread(n: int, most: int) -> Tensor:
    """At most so many of ``n`` rows, evenly spread."""
    return torch.linspace(0, n - 1, min(n, most), dtype=torch.float64).round().long()


def _linear_to_metric(study: Study, Y: Tensor, scale: Tensor) -> Scale:
    """From ``standardize(Y)`` to the metric, of which ``Y`` is a share ``1 / scale``."""
    sign = 1.0 if study.direction == "maximize" else -1.0
    mean, sd = Y.mean(), Y.std(correction=0)
    return lambda values: sign * scale * (mean + sd * values)
