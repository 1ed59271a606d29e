"""The surrogate's kernel in closed form: values, and the slopes that a fit and an ascent need.

    k(x, x') = Matern_5/2(r) * exp(-mean_j [x_j != x'_j] / l_j),     r^2 = sum_i (x_i - x'_i)^2 / l_i^2

``i`` over numeric and ``j`` over categorical columns. gpytorch computes the same (a test compares them); here no
general machinery stands between the formula and the matrix products it comes down to, which is most of the time
that a GP of fifty points takes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

SQRT5 = math.sqrt(5)


class ProductKernel:
    """Matern-5/2 over numeric columns times the overlap of categorical ones, for given length scales.

    Args:
        numeric: columns of the Matern factor.
        categorical: columns that are mere labels.
        numeric_scales: length scales ``l_i``, one for each numeric column.
        categorical_scales: length scales ``l_j``, one for each categorical column.
    """

    def __init__(
        self, numeric: Sequence[int], categorical: Sequence[int], numeric_scales: Tensor, categorical_scales: Tensor
    ) -> None:
        self.numeric = list(numeric)
        self.categorical = list(categorical)
        self.numeric_scales = numeric_scales
        self.categorical_scales = categorical_scales

    def __call__(self, A: Tensor, B: Tensor) -> Tensor:
        """``k`` between the rows of ``A`` (``... x m x d``) and ``B`` (``... x n x d``); ``... x m x n``.

        Differentiable in the numeric columns, also where points coincide.
        """
        value: Tensor | float = 1.0
        if self.numeric:
            value = matern(self._squared_distance(A, B))
        if self.categorical:
            value = value * (-self._differs(A, B).mean(dim=-1)).exp()
        assert isinstance(value, Tensor)
        return value

    def matrix_and_slope(self, X: Tensor) -> tuple[Tensor, Tensor | None]:
        """``K = k(X, X)`` and, if there are numeric columns, ``dK / d(r^2)``; both ``n x n``."""
        overlap = (-self._differs(X, X).mean(dim=-1)).exp() if self.categorical else None
        if not self.numeric:
            assert overlap is not None
            return overlap, None
        r2 = self._squared_distance(X, X)
        r2.fill_diagonal_(0.0)  # rounding leaves 1e-16
        value, slope = matern_and_slope(r2)
        return (value, slope) if overlap is None else (value * overlap, slope * overlap)

    def cross_and_slope(self, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        """``k`` between the rows of ``A`` (``m x d``) and ``B`` (``n x d``), and ``dk / d(r^2)``; both ``m x n``."""
        value = slope = torch.ones_like(A[:1, :1])
        if self.numeric:
            value, slope = matern_and_slope(self._squared_distance(A, B))
        if self.categorical:
            overlap = (-self._differs(A, B).mean(dim=-1)).exp()
            value, slope = value * overlap, slope * overlap
        return value, slope

    def pull_back(self, A: Tensor, B: Tensor, slope: Tensor, weights: Tensor) -> Tensor:
        """``sum_b weights_ab dk(a, b) / da`` for each row ``a`` of ``A``; ``slope`` from :meth:`cross_and_slope`."""
        gradient = torch.zeros_like(A)
        if self.numeric:  # d r^2 / d a_i = 2 (a_i - b_i) / l_i^2
            W = weights * slope
            pulled = W.sum(dim=-1, keepdim=True) * A[:, self.numeric] - W @ B[:, self.numeric]
            gradient[:, self.numeric] = 2 * pulled / self.numeric_scales.square()
        return gradient

    def slopes(self, X: Tensor, K: Tensor, dK: Tensor | None, weights: Tensor) -> list[Tensor]:
        """``sum_ab weights_ab dK_ab / d log l`` for the length scales of each factor, numeric first.

        Args:
            X: shape ``n x d``.
            K: from :meth:`matrix_and_slope`.
            dK: likewise.
            weights: symmetric, ``n x n``.
        """
        slopes: list[Tensor] = []
        if dK is not None:
            # d r^2 / d log l_i = -2 (x_i - x'_i)^2 / l_i^2, and the sum over pairs of W (z - z')^2 is
            # 2 sum_a z_a^2 (W 1)_a - 2 z' W z: matrix products, no n x n matrix for each column.
            Z = X[:, self.numeric] / self.numeric_scales
            W = weights * dK
            squares = W.sum(dim=-1) @ Z.square() - (Z * (W @ Z)).sum(dim=0)
            slopes.append(-4 * squares)
        if self.categorical:
            differs = self._differs(X, X)  # 1 / l_j where labels differ
            slopes.append(((weights * K).unsqueeze(-1) * differs).sum(dim=(0, 1)) / len(self.categorical))
        return slopes

    def _squared_distance(self, A: Tensor, B: Tensor) -> Tensor:
        A, B = A[..., self.numeric] / self.numeric_scales, B[..., self.numeric] / self.numeric_scales
        # Centred, so that rounding is relative to the distances and not to the distance from a corner of the cube.
        centre = B.mean(dim=-2, keepdim=True).detach()
        A, B = A - centre, B - centre
        squares = A.square().sum(dim=-1).unsqueeze(-1) + B.square().sum(dim=-1).unsqueeze(-2)
        return (squares - 2 * A @ B.mT).clamp_min(0.0)

    def _differs(self, A: Tensor, B: Tensor) -> Tensor:
        """``[x_j != x'_j] / l_j``; ``... x m x n x`` (number of categorical columns)."""
        A, B = A[..., self.categorical], B[..., self.categorical]
        return (A.unsqueeze(-2) != B.unsqueeze(-3)) / self.categorical_scales


def matern(r2: Tensor) -> Tensor:
    """``(1 + s + s^2 / 3) exp(-s)`` with ``s = sqrt(5 r^2)`` (Rasmussen & Williams, 2006, eq. 4.17)."""
    value: Tensor = _Matern.apply(r2)  # type: ignore[no-untyped-call]  # torch's
    return value


def matern_and_slope(r2: Tensor) -> tuple[Tensor, Tensor]:
    """The Matern-5/2 function of ``r^2``, and its derivative ``-5/6 (1 + s) exp(-s)``, finite everywhere."""
    s = (5 * r2).sqrt_()
    decay = (-s).exp_()
    slope = (1 + s).mul_(decay)
    return slope + (5 / 3) * r2 * decay, slope.mul_(-5 / 6)


class _Matern(torch.autograd.Function):
    """Autograd would divide zero by zero in the square root of a distance of zero."""

    @staticmethod
    def forward(ctx: Any, r2: Tensor) -> Tensor:
        value, slope = matern_and_slope(r2)
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        chained: Tensor = gradient * slope
        return chained
