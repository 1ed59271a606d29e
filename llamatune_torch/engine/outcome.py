"""Robust outcomes: how a diverged run spoils a GP, and the cure.

A GP sees outcomes through their spread. One run that diverged (a loss of 1e4, an accuracy at chance) makes the
differences among the good runs vanish in it. The search is about those. The cure follows the Vizier Gaussian process
bandit (Song et al., 2024, arXiv:2408.11527, appendix B):

1. *half-rank*: an outcome below the median keeps its rank and loses its size: it becomes the normal quantile
   of that rank, on the scale of the better half;
2. *log warp*: differences near the best are stretched, those far below it are squeezed.

Both are increasing, so they never change which of two runs is better. Larger is better throughout.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

# The log warp stretches differences at the best by this factor, relative to those at the worst.
LOG_WARP_OFFSET = 1.5
STEP = 0.05  # of the slope's difference, in robust units


def robust(Y: Tensor) -> Tensor:
    """Outcomes fit for a GP: half-ranked, log-warped, standardised.

    Args:
        Y: shape ``n``, larger is better; ``-inf`` is allowed, nan and ``+inf`` are not.

    Returns:
        Shape ``n``, finite, zero mean and unit variance (all zeros where all outcomes are equal).
    """
    return standardize(log_warp(half_rank(Y / _scale(Y))))


def restore(values: Tensor, Y: Tensor, R: Tensor, rows: Tensor) -> Tensor:
    """The outcomes that robust ``values`` stand for: the inverse of :func:`robust`, increasing.

    In the better half it is exact, and goes on beyond the best outcome in the same manner. In the worse half it is
    linear between outcomes, and ends at the worst one: of what is bad, only the rank was kept.

    Args:
        values: robust, of any shape.
        Y: outcomes, shape ``n``, larger is better.
        R: what became of them, or of ``Y[rows]`` standardised anew; two values at least that differ.
        rows: the places in ``Y`` of what ``R`` has.

    Example:
        >>> Y = torch.tensor([0.1, 0.5, 0.6, 0.8], dtype=torch.float64)
        >>> restore(robust(Y)[2:], Y, robust(Y), torch.arange(4))
        tensor([0.6000, 0.8000], dtype=torch.float64)
    """
    scale = _scale(Y)
    halved = half_rank(Y / scale)
    warped = log_warp(halved)
    kept = warped[rows.to(Y.device)]
    worst, best = int(R.argmin()), int(R.argmax())
    unit = (kept[best] - kept[worst]) / (R[best] - R[worst])
    distance = torch.expm1((0.5 - kept[best] - unit * (values - R[best])) * math.log(LOG_WARP_OFFSET))
    found = halved.max() - (halved.max() - halved.min()) * distance / (LOG_WARP_OFFSET - 1)
    order = halved.argsort()
    finite = torch.where(Y.isfinite(), Y, Y[Y.isfinite()].min())
    below = np.interp(found.numpy(force=True), halved[order].numpy(force=True), finite[order].numpy(force=True))
    median = torch.quantile(finite, 0.5, interpolation="higher")
    return torch.where(found * scale >= median, found * scale, torch.as_tensor(below).to(found))


def steepness(values: Tensor, Y: Tensor, R: Tensor, rows: Tensor) -> Tensor:
    """The slope of :func:`restore` at ``values``, as a central difference: outcomes per robust unit."""
    higher, lower = (restore(values + step, Y, R, rows) for step in (STEP, -STEP))
    return (higher - lower) / (2 * STEP)


def half_rank(Y: Tensor) -> Tensor:
    """The better half as it is, the worse half by ranks.

    The median ``m`` is a value, of an even number the upper one. So the better half holds no diverged run as long as
    half of the runs are good. With ``u`` distinct values below it, the one of rank ``r = 1 .. u`` becomes
    ``m + s * Phi^-1((r - 1/2) / (2 u + 1))``; ``s`` is the root mean square distance of the better half from ``m``.

    Args:
        Y: shape ``n``; ``-inf`` ranks last.

    Returns:
        Shape ``n``, finite.
    """
    finite = torch.isfinite(Y)
    if not finite.any():
        return torch.zeros_like(Y)
    floored = torch.where(finite, Y, Y[finite].min())
    median = torch.quantile(floored, 0.5, interpolation="higher")
    below = Y < median
    if not below.any():
        return floored
    spread = _root_mean_square(floored[~below] - median)
    if spread == 0:
        spread = _root_mean_square(floored - median)
    if spread == 0:
        spread = torch.ones_like(median)
    values, rank = torch.unique(Y[below], return_inverse=True)
    quantile = torch.special.ndtri((rank.to(Y) + 0.5) / (2 * len(values) + 1))
    ranked = floored.clone()
    ranked[below] = median + spread * quantile
    return ranked


def log_warp(Y: Tensor) -> Tensor:
    """``1/2 - log(1 + (c - 1) z) / log(c)`` with ``z = (max - y) / (max - min)`` and ``c = LOG_WARP_OFFSET``.

    Args:
        Y: shape ``n``, finite.

    Returns:
        Shape ``n``, in [-1/2, 1/2]: the best becomes 1/2, the worst -1/2 (all 1/2 where all are equal).
    """
    width = Y.max() - Y.min()
    if width == 0:
        return torch.full_like(Y, 0.5)
    distance = (Y.max() - Y) / width
    return 0.5 - torch.log1p(distance * (LOG_WARP_OFFSET - 1)) / math.log(LOG_WARP_OFFSET)


def standardize(Y: Tensor) -> Tensor:
    """Zero mean and unit variance; all zeros where the spread is no more than rounding."""
    centred = Y - Y.mean()
    spread = _root_mean_square(centred)
    if spread <= 1e-12 * Y.abs().max().clamp_min(1.0):
        return torch.zeros_like(Y)
    return centred / spread


def _scale(Y: Tensor) -> Tensor:
    # The warps do not depend on the scale; this keeps the squares of a perplexity of 1e200 from overflowing.
    finite = Y[Y.isfinite()].abs()
    return finite.max() if len(finite) and finite.max() > 0 else torch.ones_like(Y[0])


def _root_mean_square(Y: Tensor) -> Tensor:
    return Y.square().mean().sqrt()
