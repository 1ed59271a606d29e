"""Importance of parameters: Sobol indices of the functions that are plausible given the trials.

For a function of independent parameters with variance ``V`` (Sobol, 1993; Saltelli et al., 2010),

    first_i = Var(E[f | x_i]) / V,     total_i = E[Var(f | all but x_i)] / V.

Of a sum of orthogonal terms (``anova.py``) both are sums of the terms' variances: of what ``i`` does alone, and of that
and all pairs with ``i``. Each plausible function has its own indices, and their spread is the interval. So the interval
has all that is open: where the function was not seen, and how rough it is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from llamatune_torch.insight.decompose import Decomposition, Parts, Subset
from llamatune_torch.insight.records import COVERAGE, Importance, Interaction, Interval

TINY = 1e-12  # variance of outcomes that have unit variance: a constant
STEP = 100.0  # the bounds of a share are rounded outwards, to hundredths

# Shares of the draws beyond either bound. With 5 % the intervals are too narrow: no function is just what a prior says.
# ``benchmarks/importance.py`` has the coverage on functions with known indices.
TAIL = 0.02


def rank_parameters(found: Decomposition, subset: Subset, parts: Parts) -> tuple[list[Importance], list[Interaction]]:
    """The importance of the parameters of ``subset``, and of their pairs; unordered."""
    space, V = found.region.space, parts.variance.clamp_min(TINY)
    names = [space.names[j] for j in found.columns]
    total = parts.alone.clone()
    for p, (i, j) in enumerate(found.pairs):
        total[i] += parts.paired[p]
        total[j] += parts.paired[p]
    alone = [
        Importance(names[k], as_share(parts.alone[k] / V), as_share(total[k] / V), subset.given) for k in subset.members
    ]
    pairs = [
        Interaction((names[i], names[j]), as_share(parts.paired[p] / V), subset.given)
        for p, (i, j) in enumerate(found.pairs)
        if _belongs(subset, i, j)
    ]
    return alone, pairs


def _belongs(subset: Subset, i: int, j: int) -> bool:
    """True for a pair of the subset: both always active there, and one of them its own."""
    own = i in subset.members or j in subset.members
    return own and bool(subset.active[i, j] == 1)


def as_share(draws: Tensor) -> Interval:
    """The mean of draws of a share (``S``) and its bounds, in [0, 1]."""
    ends = torch.quantile(draws, torch.tensor([TAIL, 1 - TAIL], dtype=draws.dtype))
    low, high = math.floor(float(ends[0]) * STEP) / STEP, math.ceil(float(ends[1]) * STEP) / STEP
    return Interval(min(max(float(draws.mean()), low), high), max(low, 0.0), min(high, 1.0))


def as_interval(draws: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The mean of draws (``... x S``), and the bounds that leave as many of them on either side."""
    tail = (1 - COVERAGE) / 2
    low, high = torch.quantile(draws, torch.tensor([tail, 1 - tail], dtype=draws.dtype), dim=-1)
    return draws.mean(dim=-1), low, high
