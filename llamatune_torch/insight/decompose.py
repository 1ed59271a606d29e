"""Decomposition of plausible functions: what parameters do alone, and what pairs do besides, in any region.

The terms of ``anova.py`` have mean zero over the distribution that they were made for. Where a parent must have certain
values, the distribution is another one, and a pair's term has a mean along each of its parameters. That belongs to what
they do alone (Hoeffding's decomposition),

    f_i'(x_i) = f_i(x_i) + sum_j E[f_ij(x_i, x_j)] - mean,      f_ij' = f_ij - E[f_ij | x_i] - E[f_ij | x_j] + mean.

A conditional parameter is looked at where it is active, "given method = lora": elsewhere it does nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from llamatune_torch.conditions import holds
from llamatune_torch.insight.anova import NUM_PAIRED, Functions
from llamatune_torch.insight.region import Axes, Region, axes_of, given

NUM_POINTS = 1024  # that tell how often parameters are active


class Subset(NamedTuple):
    """A set of parameters with the same condition, and the distribution of all where it holds.

    given      the condition in words, "" for none
    members    their places among the ``d`` parameters that vary
    weights    d x m, of the quadrature
    active     d x d, how often both are active; on the diagonal, how often each is
    """

    given: str
    members: list[int]
    weights: Tensor
    active: Tensor


class Parts(NamedTuple):
    """Plausible functions in a subset, ``S`` of them.

    level      S             their means
    alone      d x S         variances of what each parameter does alone
    paired     pairs x S     variances of what pairs do besides
    """

    level: Tensor
    alone: Tensor
    paired: Tensor

    @property
    def variance(self) -> Tensor:
        return self.alone.sum(dim=0) + self.paired.sum(dim=0)


class Decomposition:
    """Plausible functions, ready to be taken apart.

    Args:
        region: where.
        columns: the ``d`` parameters of the functions, as columns of the space.
        functions: drawn for the quadrature of this region and these columns.
    """

    def __init__(self, region: Region, columns: Sequence[int], functions: Sequence[Functions]) -> None:
        self.region, self.columns, self._functions = region, list(columns), functions
        self.coordinates, self._weights = region.quadrature(columns)
        self.pairs = list(combinations(range(len(columns)), 2))
        self._first, self._second = ([pair[side] for pair in self.pairs] for side in (0, 1))
        nodes = self._axes(self.coordinates)
        self._waves = [each.terms.waves(nodes)[0] for each in functions]  # d x m x NUM_WAVES each

    def _axes(self, U: Tensor) -> Axes:
        return axes_of(self.region.space, self.columns, U, self._weights, torch.ones_like(U))

    def subsets(self, seed: int) -> list[Subset]:
        """The parameters by their conditions, those without one first; left out is what is never active."""
        space = self.region.space
        names = [space.names[j] for j in self.columns]
        groups: dict[str, list[int]] = {}
        for k, name in enumerate(names):
            groups.setdefault(repr(space.conditions[name]), []).append(k)
        found = []
        points = self.region.draw(NUM_POINTS, seed)
        active = self.region.cube.active(points)[:, self.columns].to(torch.float64)
        for members in groups.values():
            there = active[active[:, members[0]] > 0]
            if len(there) == 0:
                continue
            weights = self._weights.clone()
            self._restrict(weights, names[members[0]])
            weights = weights / weights.sum(dim=-1, keepdim=True)
            found.append(Subset(given(space, names[members[0]]), members, weights, there.mT @ there / len(there)))
        return sorted(found, key=lambda subset: subset.given)

    def _restrict(self, weights: Tensor, name: str) -> None:
        """Sets the weights of those values to zero with which the parameter ``name`` is inactive."""
        space = self.region.space
        for parent, values in space.conditions[name].items():
            if space.names.index(parent) not in self.columns:  # it has one value here
                continue
            k = self.columns.index(space.names.index(parent))
            kept = holds(space.parameters[parent], self.coordinates[k].numpy(), values)
            weights[k] *= torch.from_numpy(kept)
            self._restrict(weights, parent)

    def parts(self, subset: Subset) -> Parts:
        """The variances of all terms where the condition of ``subset`` holds."""
        found = [self._parts(each, waves, subset) for each, waves in zip(self._functions, self._waves, strict=True)]
        return Parts(*(torch.cat(column, dim=-1) for column in zip(*found, strict=True)))

    def _parts(self, functions: Functions, waves: Tensor, subset: Subset) -> Parts:
        first, second, W = self._first, self._second, subset.weights
        both = subset.active[first, second]
        alone = torch.einsum("dmk,dks->dms", waves, functions.alone)
        few = waves[..., :NUM_PAIRED]
        paired = torch.einsum("pmk,pkls,pnl->pmns", few[first], functions.paired, few[second])
        along_first = torch.einsum("pmns,pn->pms", paired, W[second])
        along_second = torch.einsum("pmns,pm->pns", paired, W[first])
        mean = torch.einsum("pms,pm->ps", along_first, W[first])
        paired = paired - along_first.unsqueeze(2) - along_second.unsqueeze(1) + mean[:, None, None]
        weight = both[:, None, None]
        alone = alone.index_add(0, self._places(first), weight * along_first)
        alone = alone.index_add(0, self._places(second), weight * along_second)
        own = torch.einsum("dms,dm->ds", alone, W)
        often = subset.active.diagonal().unsqueeze(-1)
        level = functions.constant + (often * own).sum(dim=0) - (both.unsqueeze(-1) * mean).sum(dim=0)
        alone = alone - own.unsqueeze(1)
        return Parts(
            level,
            often * torch.einsum("dms,dm->ds", alone.square(), W),
            both.unsqueeze(-1) * torch.einsum("pmns,pm,pn->ps", paired.square(), W[first], W[second]),
        )

    def along(self, subset: Subset, parts: Parts, us: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """The functions along parameters, on average over all others.

        Args:
            subset: where.
            parts: of the subset.
            us: for the place of each parameter its coordinates, ``g``.

        Returns:
            ``g x S`` for each.
        """
        return {k: curve + parts.level for k, curve in self._curves(subset, us).items()}

    def _curves(self, subset: Subset, us: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """The terms of single parameters at given coordinates, less their means; ``g x S`` for each."""
        curves: dict[int, list[Tensor]] = {k: [] for k in us}
        axes = self._axes_at(us)
        for functions, waves, own in zip(self._functions, self._waves, self._own_weights(subset), strict=True):
            at, _ = functions.terms.waves(axes)
            for k, u in us.items():
                mean = subset.weights[k] @ (waves[k] @ own[k])
                curves[k].append(at[k, : len(u)] @ own[k] - mean)
        return {k: torch.cat(curve, dim=-1) for k, curve in curves.items()}

    def _axes_at(self, us: Mapping[int, Tensor]) -> Axes:
        """Axes of given coordinates; short rows are filled up."""
        U = torch.zeros(len(self.columns), max(map(len, us.values())), dtype=torch.float64)
        for k, u in us.items():
            U[k, : len(u)] = u
        return self._axes(U)

    def _own_weights(self, subset: Subset) -> list[Tensor]:
        """The weights of eigenfunctions in what parameters do alone, ``d x NUM_WAVES x s`` for each belief."""
        first, second = self._first, self._second
        both = subset.active[first, second][:, None, None]
        found = []
        for functions, waves in zip(self._functions, self._waves, strict=True):
            mean = torch.einsum("dmk,dm->dk", waves[..., :NUM_PAIRED], subset.weights)
            own = functions.alone.clone()
            few = own[:, :NUM_PAIRED]
            few.index_add_(0, self._places(first), both * torch.einsum("pkls,pl->pks", functions.paired, mean[second]))
            few.index_add_(0, self._places(second), both * torch.einsum("pkls,pk->pls", functions.paired, mean[first]))
            found.append(own)
        return found

    @staticmethod
    def _places(places: list[int]) -> Tensor:
        return torch.tensor(places, dtype=torch.long)

    def across(self, subset: Subset, parts: Parts, p: int, u: Tensor, v: Tensor) -> Tensor:
        """The functions at all pairs of coordinates ``u`` (``g``) and ``v`` (``h``) of pair ``p``; ``g x h x S``."""
        i, j = self.pairs[p]
        alone, axes = self._curves(subset, {i: u, j: v}), self._axes_at({i: u, j: v})
        found = []
        for functions, waves in zip(self._functions, self._waves, strict=True):
            at = functions.terms.waves(axes)[0][..., :NUM_PAIRED]
            left = at[i, : len(u)] - subset.weights[i] @ waves[i][:, :NUM_PAIRED]
            right = at[j, : len(v)] - subset.weights[j] @ waves[j][:, :NUM_PAIRED]
            found.append(torch.einsum("gk,kls,hl->ghs", left, functions.paired[p], right))
        return torch.cat(found, dim=-1) + alone[i].unsqueeze(1) + alone[j].unsqueeze(0) + parts.level
