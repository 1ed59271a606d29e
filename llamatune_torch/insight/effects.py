"""Effects of parameters: the metric along one, on average over all others (partial dependence, Friedman, 2001)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llamatune_torch.engine.crash import crash_factors
from llamatune_torch.engine.data import TrainingData
from llamatune_torch.insight.decompose import Decomposition, Parts, Subset
from llamatune_torch.insight.importance import as_interval
from llamatune_torch.insight.records import Effect, Surface
from llamatune_torch.insight.region import Region
from llamatune_torch.parameters import Number

NUM_ALONG = 21  # places of a range in an effect
NUM_ACROSS = 12  # places of each range in a surface
NUM_OTHERS = 64  # settings of the other parameters, over which failures are averaged

Scale = Callable[[Tensor], Tensor]  # from standardised outcomes to the metric


def effects_of(found: Decomposition, subset: Subset, parts: Parts, to_metric: Scale) -> list[Effect]:
    """The metric along each parameter of ``subset``, where its condition holds."""
    space = found.region.space
    us = {k: found.region.along(found.columns[k], NUM_ALONG) for k in subset.members}
    effects = []
    for k, curves in found.along(subset, parts, us).items():
        j = found.columns[k]
        parameter = space.parameters[space.names[j]]
        mean, low, high = (each.tolist() for each in as_interval(to_metric(curves)))
        effects.append(
            Effect(
                name=space.names[j],
                values=_values(found.region, j, us[k]),
                mean=tuple(mean),
                low=tuple(low),
                high=tuple(high),
                is_number=isinstance(parameter, Number),
                is_log=is_log(parameter),
                given=subset.given,
                num_special=int((found.region.is_point(us[k], j) & parameter.ordered).sum()),
            )
        )
    return effects


def surface(found: Decomposition, subset: Subset, parts: Parts, p: int, to_metric: Scale) -> Surface:
    """The metric along the two parameters of pair ``p`` of ``found``."""
    columns = [found.columns[k] for k in found.pairs[p]]
    space = found.region.space
    u, v = (found.region.along(j, NUM_ACROSS) for j in columns)
    mean, low, high = as_interval(to_metric(found.across(subset, parts, p, u, v)))
    first, second = (space.parameters[space.names[j]] for j in columns)
    return Surface(
        names=(space.names[columns[0]], space.names[columns[1]]),
        values=(_values(found.region, columns[0], u), _values(found.region, columns[1], v)),
        mean=tuple(map(tuple, mean.tolist())),
        half=tuple(map(tuple, ((high - low) / 2).tolist())),
        is_log=(is_log(first), is_log(second)),
        is_number=(isinstance(first, Number), isinstance(second, Number)),
        given=subset.given,
    )


def failing_along(data: TrainingData, region: Region, effects: list[Effect], seed: int) -> list[Effect]:
    """The same effects, with the probability that a run fails at each value, on average over the other parameters."""
    factors = crash_factors(data)
    if not factors:
        return effects
    others = region.draw(NUM_OTHERS, seed)
    found = []
    for each in effects:
        j = region.space.names.index(each.name)
        u = torch.from_numpy(region.space.parameters[each.name].encode(list(each.values)))
        X = others.repeat(len(u), 1)
        X[:, j] = u.repeat_interleave(len(others))
        X = region.cube.snap(X).to(data.X)
        with torch.no_grad():
            works = torch.stack([factor.log_value(X.unsqueeze(-2)) for factor in factors]).sum(dim=0).exp()
        failing = 1 - works.view(len(u), -1).mean(dim=-1)
        found.append(each._replace(failing=tuple(failing.tolist())))
    return found


def _values(region: Region, j: int, u: Tensor) -> tuple[Any, ...]:
    return tuple(region.space.parameters[region.space.names[j]].decode(np.asarray(u)))


def is_log(parameter: object) -> bool:
    """True for a range that is searched in its logarithm."""
    return isinstance(parameter, Number) and (
        parameter.prior == "log-uniform" or getattr(parameter, "powers_of", None) is not None
    )
