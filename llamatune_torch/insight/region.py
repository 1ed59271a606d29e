"""Regions where a question is asked: the whole space, or what the best trials span.

A region draws each parameter for itself, as random search draws the whole space. So the effects of parameters can be
told apart (``importance.py``). Rules of the space are not kept: they tie parameters to each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from llamatune_torch.engine.cube import Cube, inner
from llamatune_torch.engine.qmc import quasi_random
from llamatune_torch.parameter_base import Comparison
from llamatune_torch.parameters import SPECIAL_SHARE
from llamatune_torch.space import SearchSpace

NUM_NODES = 16  # of the quadrature along a range
NUM_EVEN = 1024  # places that tell the shares of few values


class Span(NamedTuple):
    """The values that one parameter may have.

    points      the coordinates of special values and choices, one for each good trial that has one
    share       of the draws that is one of them; the others are uniform
    low, high   the range of the others
    """

    points: Tensor
    share: float
    low: float
    high: float

    def place(self, u: Tensor) -> Tensor:
        """Coordinates for uniform draws ``u``, any shape."""
        if self.share == 0:
            return self.low + (self.high - self.low) * u
        chosen = self.points[(u / self.share * len(self.points)).long().clamp(0, len(self.points) - 1)]
        if self.share == 1:
            return chosen
        return torch.where(
            u < self.share, chosen, self.low + (self.high - self.low) * (u - self.share) / (1 - self.share)
        )

    def holds(self, u: Tensor, is_point: Tensor) -> Tensor:
        """True for coordinates that may be drawn; ``is_point`` marks special values and choices."""
        inside = (u >= self.low - 1e-9) & (u <= self.high + 1e-9) & (self.share < 1)
        return torch.where(is_point, torch.isin(u, self.points.to(u)), inside)


class Region:
    """A product of what each parameter may be.

    Args:
        space: the search space.
        good: points (``n x d``) whose parameters span the region; ``None`` for the whole space.
    """

    def __init__(self, space: SearchSpace, good: Tensor | None = None) -> None:
        self.space, self.cube = space, Cube(space)
        self._spans = None if good is None else [self._span(good, j) for j in range(space.dim)]

    def _span(self, good: Tensor, j: int) -> Span:
        known = good[self.cube.active(good)[:, j], j]
        is_point = self.is_point(known, j)
        ordinary, points = known[~is_point], known[is_point]
        low, high = (float(ordinary.min()), float(ordinary.max())) if len(ordinary) else (0.0, 1.0)
        return Span(points, len(points) / max(1, len(known)), low, high)

    def is_point(self, u: Tensor, j: int) -> Tensor:
        """True for coordinates of special values and choices of parameter ``j``."""
        parameter = self.space.parameters[self.space.names[j]]
        return torch.from_numpy(parameter.special_of(u.numpy()) >= 0) | (not parameter.ordered)

    def draw(self, n: int, seed: int) -> Tensor:
        """``n`` quasi-random points of the region, ``n x d``."""
        return self.place(quasi_random(self.space.dim, n, seed))

    def place(self, U: Tensor) -> Tensor:
        """Points of the region for points of the unit cube (``n x d``), snapped to the space."""
        if self._spans is not None:
            U = torch.stack([span.place(U[:, j]) for j, span in enumerate(self._spans)], dim=-1)
        return self.cube.snap(U)

    def nodes(self, j: int) -> tuple[Tensor, Tensor]:
        """A quadrature along parameter ``j``: coordinates, and weights that add up to 1."""
        parameter = self.space.parameters[self.space.names[j]]
        if (parameter.size is not None and parameter.size <= NUM_NODES) or not parameter.ordered:
            even = (torch.arange(NUM_EVEN, dtype=torch.float64) + 0.5) / NUM_EVEN
            placed = even if self._spans is None else self._spans[j].place(even)
            u, counts = torch.unique(torch.from_numpy(parameter.snap(placed.numpy())), return_counts=True)
            return u, counts.to(u) / counts.sum()
        at, weights = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(NUM_NODES))
        at, weights = (at + 1) / 2, weights / 2
        if self._spans is None:
            points = torch.from_numpy(parameter.encode(list(parameter.special)))
            counts, share, high = torch.ones_like(points), SPECIAL_SHARE if parameter.special else 0.0, 1.0
            low = share
        else:
            span = self._spans[j]
            points, counts = torch.unique(span.points, return_counts=True)
            share, low, high = span.share, span.low, span.high
        within = share * counts.to(at) / counts.sum().clamp_min(1)
        return torch.cat([points, low + (high - low) * at]), torch.cat([within, (1 - share) * weights])

    def quadrature(self, columns: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Coordinates and weights along several parameters, ``d x m``; short rows are filled with weights of zero."""
        rows = [self.nodes(j) for j in columns]
        most = max(len(u) for u, _ in rows)
        U = torch.stack([torch.cat([u, u[:1].expand(most - len(u))]) for u, _ in rows])
        return U, torch.stack([torch.cat([w, w.new_zeros(most - len(w))]) for _, w in rows])

    def axes(self, columns: Sequence[int]) -> Axes:
        """The quadrature along several parameters, as the kernels see it."""
        U, weights = self.quadrature(columns)
        return axes_of(self.space, columns, U, weights, torch.ones_like(U))

    def varies(self, j: int) -> bool:
        """True if parameter ``j`` may have more than one value here."""
        u, weights = self.nodes(j)
        u = u[weights > 0]
        return bool((u - u[0]).abs().max() > 1e-6)

    def along(self, j: int, most: int) -> Tensor:
        """Coordinates along parameter ``j``: special values first, then all choices, or ``most`` places of a range."""
        parameter = self.space.parameters[self.space.names[j]]
        span = None if self._spans is None else self._spans[j]
        if parameter.size is not None and (parameter.size <= most or not parameter.ordered):
            u = torch.from_numpy(parameter.coordinate(np.arange(parameter.size)))
            return u if span is None else u[span.holds(u, self.is_point(u, j))]
        special = torch.from_numpy(parameter.encode(list(parameter.special)))
        low, high = SPECIAL_SHARE if parameter.special else 0.0, 1.0
        if span is not None:
            special = special[torch.isin(special, span.points.to(special))]
            low, high, most = span.low, span.high, most if span.share < 1 else 0
        even = torch.from_numpy(parameter.snap(np.linspace(low, high, most)))
        return torch.cat([special, torch.unique(even[~self.is_point(even, j)])])  # a bound may be special


def given(space: SearchSpace, name: str) -> str:
    """The condition under which a parameter is active, in words; "" if it always is."""
    return " and ".join(f"{parent} {_in_words(values)}" for parent, values in space.conditions[name].items())


def _in_words(values: Sequence[Any]) -> str:
    if isinstance(values[0], Comparison):
        return str(values[0])
    return "= " + " or ".join(map(str, values))


class Axes(NamedTuple):
    """Values along ``d`` parameters, ``n`` of each: those of ``n`` trials, or a quadrature.

    kinds     d x n   the number of a special value or a choice; -1 for an ordinary value
    places    d x n   in the ordinary range, from 0 to 1
    weights   d x n   of a quadrature, adding up to 1 along each parameter
    active    d x n   1.0 where the parameter is active, else 0.0
    """

    kinds: Tensor
    places: Tensor
    weights: Tensor
    active: Tensor

    def rows(self, rows: Tensor) -> Axes:
        """The same of some trials."""
        return Axes(*(column[:, rows] for column in self))


def axes_of(space: SearchSpace, columns: Sequence[int], U: Tensor, weights: Tensor, active: Tensor) -> Axes:
    """Axes of coordinates ``U`` (``d x n``) along the parameters with those ``columns``."""
    kinds, places = [], []
    for u, j in zip(U, columns, strict=True):
        parameter = space.parameters[space.names[j]]
        if not parameter.ordered:
            kind = torch.from_numpy(parameter.index_of(u.numpy()))
            place = torch.full_like(u, 0.5)
        else:
            kind = torch.from_numpy(parameter.special_of(u.numpy()))
            inside = inner(u) if parameter.special else u
            place = torch.where(kind < 0, inside, 0.5)
        kinds.append(kind)
        places.append(place)
    return Axes(torch.stack(kinds), torch.stack(places), weights, active.to(U))
