"""The candidate search: the point of a mixed space that maximises an acquisition.

    screen    many quasi-random points, and some around the best observations, in one batch without gradients
    ascend    L-BFGS-B on the real columns, all restarts in one batch
    move      integer steps, changes of choice and jumps to special values and back, by the acquisition's own
              values; back to `ascend`

The acquisition sees only points of the space, and nothing is rounded afterwards: integer and categorical columns hold
coordinates that stand for values, special values stand at their cell's centre, inactive columns in the middle. A small
finite space is enumerated instead. Points done or running are not proposed again.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from botorch.optim.batched_lbfgs_b import fmin_l_bfgs_b_batched
from numpy.typing import NDArray
from torch import Tensor

from llamatune_torch.engine.cube import Cube, to_numpy
from llamatune_torch.engine.qmc import allowed_sobol
from llamatune_torch.errors import SpaceExhaustedError
from llamatune_torch.parameter_base import Floats, Parameter
from llamatune_torch.parameters import SPECIAL_SHARE, Number
from llamatune_torch.space import RESOLUTION

Score = Callable[[Tensor], Tensor]  # b x 1 x d -> b

MAX_ENUMERATED = 4096
MAX_ROUNDS = 5  # of ascend and move
MAX_ASCENT = 100  # iterations of L-BFGS-B
ASCENT_TOLERANCE = 2e-5  # of the acquisition, relative to the larger of its size and 1
MAX_STEPS = 20  # of move in one round
BISECTIONS = 12  # of the way back to where the rules are kept
CHUNK = 2048  # points evaluated at once, to bound the memory
CHUNK_OF_NEW = 512  # points compared at once with all that are tried, which may be thousands
# Starting places of parameters that were special before, as shares of their range.
LANDMARKS = (1 / 8, 3 / 8, 5 / 8, 7 / 8)
NUM_ACTIVATIONS = 8  # starting places of parameters that were inactive before


def maximize(
    acquisition: Score,
    space: Cube,
    incumbents: Tensor,
    avoid: Tensor,
    num_restarts: int,
    num_screened: int,
    seed: int,
) -> Tensor:
    """The best new point for ``acquisition``; shape ``d``.

    Args:
        acquisition: larger is better; from ``b x 1 x d`` to ``b``, differentiable in the real columns.
        space: says which columns are real, ordered or mere labels.
        incumbents: the best observed points, ``k x d``; the search also starts around them.
        avoid: points done or running, ``m x d``; gives device and dtype.
        num_restarts: starting points of the ascent.
        num_screened: quasi-random points to choose them from.
        seed: seeds all randomness of this function.

    Raises:
        SpaceExhaustedError: no point of a finite space is left.
    """
    generator = torch.Generator().manual_seed(seed)
    if space.size is not None and space.size <= MAX_ENUMERATED:
        candidates = space.grid().to(avoid)
    else:
        near = around(space, incumbents.cpu(), num_screened // 4, generator)
        X = torch.cat([allowed_sobol(space, num_screened, seed), near[space.allows(near)]]).to(avoid)
        X = X[is_new(space, X, avoid)]
        values = evaluate(acquisition, X)
        starts = X[choose_starts(values, num_restarts, generator)]
        best = X[values.topk(min(1, len(X))).indices]  # the only one of them that may still be the best of all
        candidates = torch.cat([climb(acquisition, space, starts), best])
    candidates = candidates[is_new(space, candidates, avoid) & space.allows(candidates)]
    if len(candidates) == 0:
        raise SpaceExhaustedError(
            f"all {space.size} points of the space are done or running; nothing new can be suggested"
        )
    return candidates[evaluate(acquisition, candidates).argmax()]


def around(space: Cube, centres: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """About ``n`` points near the ``k`` centres: normal steps of many sizes in some columns; snapped, ``n x d``."""
    if len(centres) == 0 or n < len(centres):
        return centres[:0]
    X = centres.repeat_interleave(n // len(centres), dim=0)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=X.dtype, device=X.device)

    scale = 10 ** -(3 * uniform(len(X), 1))
    steps = scale * torch.randn(X.shape, generator=generator, dtype=X.dtype, device=X.device)
    changed = uniform(*X.shape) < 0.5
    moved = (X + steps * changed).clamp(0.0, 1.0)
    for j in space.categorical_columns + space.special_columns:
        anew, resampled = uniform(len(X)), uniform(len(X)) < 0.2
        moved[:, j] = torch.where(resampled, anew, X[:, j] if j in space.categorical_columns else moved[:, j])
    if space.parent_columns:  # what was inactive may be active now, and has no centre to be near
        moved = torch.where(space.active(X), moved, uniform(*X.shape))
    return space.snap(moved)


def is_new(space: Cube, X: Tensor, avoid: Tensor) -> Tensor:
    """Marks the rows of ``X`` that differ from all of ``avoid`` by what the space resolves; boolean, shape ``n``."""
    if len(avoid) == 0:
        return torch.ones(len(X), dtype=torch.bool, device=X.device)
    avoid = space.resolved(avoid)
    distances = [torch.cdist(chunk, avoid, p=torch.inf).amin(dim=-1) for chunk in space.resolved(X).split(CHUNK_OF_NEW)]
    return torch.cat(distances) >= 1


def evaluate(acquisition: Score, X: Tensor) -> Tensor:
    """The acquisition at each row of ``X`` (``n x d``), without gradients; nan counts as worthless."""
    with torch.no_grad():
        values = torch.cat([acquisition(chunk.unsqueeze(-2)) for chunk in X.split(CHUNK)])
    return values.nan_to_num(nan=-torch.inf)


def choose_starts(values: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Indices of ``k`` starting points: half the best, half drawn with probability growing with the value."""
    k = min(k, len(values))
    best = values.topk((k + 1) // 2).indices
    finite = values[values.isfinite()]
    spread = finite.std() if len(finite) > 1 else torch.zeros(())
    scaled = (values - values.max()) / spread if spread > 0 else torch.zeros_like(values)
    weights = scaled.nan_to_num(nan=0.0).exp().clamp_min(1e-12)
    weights[best] = 0.0
    if k == len(best):
        return best
    drawn = torch.multinomial(weights.cpu(), k - len(best), generator=generator)
    return torch.cat([best, drawn.to(best)])


def climb(acquisition: Score, space: Cube, X: Tensor) -> Tensor:
    """Local maxima reached from the rows of ``X`` (``b x d``), real and discrete columns in turn; ``b x d``."""
    can_jump = any(parameter.size is not None or parameter.special for parameter in space)
    for _ in range(MAX_ROUNDS):
        if space.real_columns:
            X = retreat(space, X, ascend(acquisition, space, X))
        if not can_jump:
            return X
        X, moved = move(acquisition, space, X)
        if not moved:
            return X
    return X


def retreat(space: Cube, X: Tensor, reached: Tensor) -> Tensor:
    """The last points on the ways from ``X`` to ``reached`` (``b x d``) that keep the rules of the space, as ``X`` do.

    By bisection, so that of a region with holes another point may be found that keeps them.
    """
    if not space.space.rules:
        return reached
    kept = space.allows(reached)
    low, high = torch.zeros_like(X[:, :1]), torch.ones_like(X[:, :1])
    result = torch.where(kept.unsqueeze(-1), reached, X)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        points = space.snap(X + middle * (reached - X))
        inside = space.allows(points).unsqueeze(-1)
        result = torch.where(inside & ~kept.unsqueeze(-1), points, result)
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    return result


def ascend(acquisition: Score, space: Cube, X: Tensor) -> Tensor:
    """L-BFGS-B from each row of ``X`` in its real columns, where they are active and ordinary; ``b x d``.

    ``b`` independent problems with one batched evaluation a step (BoTorch's port of scipy's solver). A line
    search that ends early at machine precision is no failure: the point it reached is kept.
    """
    free = space.real_columns
    # A column is searched in all rows or in none. So a coordinate that a row must hold is put back, its gradient zero.
    held = (space.is_special(X) | ~space.active(X))[:, free]

    def points_at(x: NDArray[np.float64], rows: list[int]) -> Tensor:
        points = X[rows]
        points[:, free] = torch.where(held[rows], points[:, free], torch.from_numpy(x).to(X))
        # A real parent that crosses a threshold turns others on or off: what is off stands in the middle.
        return space.snap(points) if space.compared_columns else points

    def negate(x: NDArray[np.float64], batch_indices: list[int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        points = points_at(x, batch_indices).requires_grad_(True)
        values = -acquisition(points.unsqueeze(-2))
        (gradient,) = torch.autograd.grad(values.sum(), points)
        gradient = gradient[:, free].nan_to_num().masked_fill(held[batch_indices], 0.0)
        return values.numpy(force=True), gradient.numpy(force=True)

    reached, _, _ = fmin_l_bfgs_b_batched(
        negate,
        X[:, free].numpy(force=True),
        bounds=[_ordinary_range(parameter) for parameter in space if parameter.size is None],
        maxiter=MAX_ASCENT,
        factr=ASCENT_TOLERANCE / np.finfo(np.float64).eps,
        pass_batch_indices=True,
    )
    return points_at(reached, list(range(len(X))))


def _ordinary_range(real: Parameter) -> tuple[float, float]:
    """The range in which a real column may climb. Next to a special end of the range there is nothing new."""
    if not isinstance(real, Number) or not real.special:
        return 0.0, 1.0
    margin = (1 - SPECIAL_SHARE) * RESOLUTION
    return SPECIAL_SHARE + margin * (real.low in real.special), 1.0 - margin * (real.high in real.special)


def move(acquisition: Score, space: Cube, X: Tensor) -> tuple[Tensor, bool]:
    """Steepest ascent over the :func:`neighbours`; returns the points, and whether any of them moved."""
    values = evaluate(acquisition, X)
    moved = False
    for _ in range(MAX_STEPS):
        options = neighbours(space, X)  # b x m x d
        b, m, d = options.shape
        flat = options.reshape(b * m, d)
        worth = evaluate(acquisition, flat).where(space.allows(flat), -torch.inf)
        best = worth.reshape(b, m).max(dim=-1)
        better = best.values > values
        if not better.any():
            break
        chosen = options[torch.arange(b, device=X.device), best.indices]
        X = torch.where(better.unsqueeze(-1), chosen, X)
        values = torch.where(better, best.values, values)
        moved = True
    return X, moved


def neighbours(space: Cube, X: Tensor) -> Tensor:
    """For each row of ``X``, the points that differ in one discrete value; ``b x m x d``.

    Every other choice of an unordered column, steps of 1, 2, 4, ... values either way in an ordered one, each special
    value, and from there back to a few places of the range. Parameters that a change makes active start at a few
    combinations of coordinates, the same for all.
    """
    variants: list[Tensor] = []
    U = to_numpy(X)
    for j, parameter in enumerate(space):
        values = torch.from_numpy(_jump_targets(parameter, U[:, j])).to(X)
        changed = X.unsqueeze(-2).repeat(1, values.shape[-1], 1)
        changed[..., j] = values
        variants.append(_activate(space, X, changed) if j in space.parent_columns else changed)
    options = torch.cat(variants, dim=-2)
    return space.snap(options) if space.parent_columns else options


def _jump_targets(parameter: Parameter, U: Floats) -> Floats:
    """The coordinates to which those of one column, ``U`` (``b``), may jump; ``b x m``, ``m`` is 0 for a continuum."""
    places: Floats = np.empty(0)
    if isinstance(parameter, Number) and parameter.special:
        ordinary = SPECIAL_SHARE + (1 - SPECIAL_SHARE) * np.array(LANDMARKS)
        places = parameter.snap(np.concatenate([parameter.special_coordinates(), ordinary]))
    places = np.tile(places, (len(U), 1))
    if parameter.size is None:
        return places
    if parameter.ordered:
        steps = 2 ** np.arange(max(parameter.size - 1, 1).bit_length())
        index = parameter.index_of(U)[:, np.newaxis] + np.concatenate([-steps, steps])
        index = index.clip(0, parameter.size - 1)
    else:
        index = np.tile(np.arange(parameter.size), (len(U), 1))
    return np.concatenate([parameter.coordinate(index), places], axis=-1)


def _activate(space: Cube, X: Tensor, changed: Tensor) -> Tensor:
    """``changed`` (``b x m x d``) with inactive columns of ``X`` at ``a`` combinations; ``b x (m a) x d``."""
    # The first point of the unscrambled sequence is the origin.
    combinations = torch.quasirandom.SobolEngine(space.dim).draw(NUM_ACTIVATIONS + 1, dtype=X.dtype)[1:].to(X)
    active = space.active(X)[:, None, None, :]
    return torch.where(active, changed.unsqueeze(-2), combinations).flatten(1, 2)
