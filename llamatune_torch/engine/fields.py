"""Functions of the unit cube that say where it is good: weighted sums of kernels, and what users believe.

What users believe about parameters is, for each of them,

    -log(1 + ((u - u_0) / sd)^2 / 2),

a Student's t around the believed place, which gives a wrong belief up sooner than a normal one would.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llamatune_torch.engine.cube import Cube
from llamatune_torch.engine.features import Features
from llamatune_torch.engine.kernel import Covariance
from llamatune_torch.space import SearchSpace


class Term(NamedTuple):
    """``k(x, X) w``: features of ``n`` points, and their weights (``n``)."""

    covariance: Covariance
    inputs: Tensor
    weights: Tensor

    def to(self, like: Tensor) -> Term:
        """The same on the device and of the dtype of another tensor."""
        k = self.covariance
        scales = k.numeric_scales.to(like), k.categorical_scales.to(like)
        return Term(Covariance(k.numeric, k.categorical, *scales), self.inputs.to(like), self.weights.to(like))


@dataclass(frozen=True)
class Belief:
    """The good places of some columns, as a user believes them.

    Where a column is inactive, or has a special value, it counts as one standard deviation off.

    Args:
        cube: the space.
        columns, centers, spreads: as of ``Parameter.belief_at``, each of the same length.
    """

    cube: Cube
    columns: list[int]
    centers: list[float]
    spreads: list[float]

    @classmethod
    def of(cls, space: SearchSpace) -> Belief | None:
        """The beliefs of a space; ``None`` if there are none."""
        found = [(j, *at) for j, parameter in enumerate(space) if (at := parameter.belief_at()) is not None]
        return cls(Cube(space), *(list(column) for column in zip(*found, strict=True))) if found else None

    def __call__(self, X: Tensor) -> Tensor:
        """The value at the rows of ``X`` (``b x d``), 0 at best; shape ``b``; differentiable."""
        away = (X[:, self.columns] - X.new_tensor(self.centers)) / X.new_tensor(self.spreads)
        if self.cube.special_columns or self.cube.parent_columns:
            ordinary = (self.cube.active(X) & ~self.cube.is_special(X))[:, self.columns]
            away = torch.where(ordinary, away, 1.0)
        return -torch.log1p(away.square() / 2).sum(dim=-1)

    def placed(self, X: Tensor) -> Tensor:
        """The rows of ``X`` with the believed columns at their centres."""
        X = X.clone()
        X[:, self.columns] = X.new_tensor(self.centers)
        return X


@dataclass(frozen=True)
class Field:
    """A function of the unit cube, ``constant + sum_t k_t(x, X_t) w_t``, with its gradient in closed form.

    ``belief`` times ``believed`` comes on top.
    """

    features: Features
    terms: list[Term]
    constant: float
    belief: Belief | None = None
    believed: float = 0.0

    def to(self, like: Tensor) -> Field:
        """The same for points on the device and of the dtype of another tensor."""
        return replace(self, terms=[term.to(like) for term in self.terms])

    def __call__(self, X: Tensor) -> Tensor:
        """The values at the rows of ``X`` (``b x d``); shape ``b``."""
        value: Tensor = _Sum.apply(self.features(X), self.terms)  # type: ignore[no-untyped-call]  # torch's
        return self.constant + value + (0.0 if self.belief is None else self.believed * self.belief(X))


class _Sum(torch.autograd.Function):
    """The terms of a field at features: one node for autograd, as of predictions (``prediction.py``)."""

    @staticmethod
    def forward(ctx: Any, Z: Tensor, terms: list[Term]) -> Tensor:
        value, slopes = torch.zeros_like(Z[:, 0]), []
        for term in terms:
            cross, slope = term.covariance.cross_and_slope(Z, term.inputs)
            value = value + cross @ term.weights
            slopes.append(slope)
        ctx.terms = terms
        ctx.save_for_backward(Z, *slopes)
        return value

    @staticmethod
    def backward(ctx: Any, by_value: Tensor) -> tuple[Tensor, None]:
        Z, *slopes = ctx.saved_tensors
        gradient = torch.zeros_like(Z)
        for term, slope in zip(ctx.terms, slopes, strict=True):
            gradient += term.covariance.pull_back(Z, term.inputs, slope, by_value[:, None] * term.weights)
        return gradient, None
