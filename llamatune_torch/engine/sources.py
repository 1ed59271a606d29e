"""Past studies as functions of the new study's unit cube: one GP each, one kernel for all.

Each past study has a GP of its own robust outcomes. The length scales and the noise of all are the same, the geometric
median of those that fit each best. So the mean of study ``s`` is

    mu_s(x) = c_s + k(x, X_s) a_s,        a_s = (K_s + noise I)^-1 (Z_s - c_s),

and any weighted sum of means is one product with the points of all (compare Golovin et al., 2017, and Wistuba et al.,
2018). A parameter that a past study lacks is left out of its kernel. Values outside of the new ranges count as that far
out.

Where sizes are known (parameters, tokens), optima move with them. The best place of each study, column by column, is
regressed on the logarithms of the sizes, and all points of a study move by what lies between its sizes and the new
ones. A column moves only where that predicts left-out studies better than their mean does.

What users believe about parameters is one more such function (``fields.py``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import torch
from linear_operator.utils.cholesky import psd_safe_cholesky
from torch import Tensor

from llamatune_torch.engine.crash import SHORTEST
from llamatune_torch.engine.cube import Cube
from llamatune_torch.engine.features import Features
from llamatune_torch.engine.fields import Belief, Field, Term
from llamatune_torch.engine.kernel import Covariance, ProductKernel
from llamatune_torch.engine.outcome import robust
from llamatune_torch.engine.qmc import allowed_sobol
from llamatune_torch.engine.surrogate import fit_gp
from llamatune_torch.parameters import Number
from llamatune_torch.past import LEAST, PastStudy, fit_into
from llamatune_torch.rules import name_of_rule
from llamatune_torch.space import SearchSpace

MOST = 60  # points of a past study: the best third, and others evenly by rank
MIN_NOISE = 1e-3
LABEL_NOISE = 0.2  # of labels, as in ``crash.py``
NUM_PLACES = 256  # Sobol points at which the functions are looked at
NUM_BEST = 5  # points of each past study among the candidates for a first guess
AGREE_ALONE = 0.6  # how well one past study alone is expected to predict the new one
AGREE_BELIEF = 0.5  # and a belief alone
NUM_BELIEVED = 15  # places with the believed columns as believed, among the candidates for a first guess

RIDGE = 0.1
BETTER = 0.7  # of the error of the mean: a column moves only if left-out optima are predicted that much better
FARTHEST = 0.5  # of the cube that a study moves
SOFTNESS = 0.1  # of a study's spread: the temperature at which its best place is averaged


class Points(NamedTuple):
    """The points of one past study.

    X          n x d   completed trials
    Z          n       their robust outcomes
    X_failed   m x d   failed ones
    features           those of the parameters that it knows
    """

    X: Tensor
    Z: Tensor
    X_failed: Tensor
    features: Features

    @property
    def tells(self) -> bool:
        """True if its outcomes say where it is good."""
        known = bool(self.features.numeric or self.features.categorical)
        return known and len(self.Z) >= LEAST and not bool((self.Z == self.Z[0]).all())

    def moved(self, move: Tensor) -> Points:
        """The same, with all points moved; ``move`` has shape ``d``."""
        return self._replace(X=self.X + move, X_failed=self.X_failed + move)


class Group(NamedTuple):
    """Past studies that know the same parameters: the features of their ``n`` points, and a column of weights each.

    covariance
    inputs      n x f
    weights     n x S   zero in the columns of other studies
    """

    covariance: Covariance
    inputs: Tensor
    weights: Tensor


class Sources(NamedTuple):
    """``S`` functions of the unit cube that say where it is good.

    features     what the kernel sees of points
    covariance   the kernel that all share, over all features
    groups       the past studies
    constants    S       the constants of their means
    spreads      S       their standard deviations over the cube
    candidates   k x d   the places where the best may be
    agreement            how well they predict each other: a correlation
    names                for people
    failures             the labels that they expect of points, 1 for what works and -1 for what does not; ``None`` if
                         nothing has failed
    belief               the last of the functions, if a user believes something
    """

    features: Features
    covariance: Covariance
    groups: list[Group]
    constants: Tensor
    spreads: Tensor
    candidates: Tensor
    agreement: float
    names: list[str]
    failures: Field | None = None
    belief: Belief | None = None

    @property
    def num_studies(self) -> int:
        """The number of past studies among the functions; a belief is the last one."""
        return len(self.constants) - (self.belief is not None)

    def means(self, X: Tensor) -> Tensor:
        """All functions at the rows of ``X`` (``b x d``), each with unit spread; ``b x S``."""
        Z = self.features(X)
        values = sum((g.covariance(Z, g.inputs) @ g.weights for g in self.groups), start=self.constants)
        if self.belief is not None:
            values = values + torch.nn.functional.pad(self.belief(X)[:, None], (len(self.constants) - 1, 0))
        return values.expand(len(X), -1) / self.spreads

    def mixture(self, weights: Tensor) -> Field:
        """The weighted sum of all functions; ``weights`` has shape ``S``."""
        each = weights / self.spreads
        terms = [Term(group.covariance, group.inputs, group.weights @ each) for group in self.groups]
        believed = float(each[-1]) if self.belief is not None else 0.0
        return Field(self.features, terms, float(self.constants @ each), self.belief, believed)


def fit_sources(space: SearchSpace, past: tuple[PastStudy, ...], context: Mapping[str, float]) -> Sources | None:
    """Fits the past studies; ``None`` if none of them has enough completed trials that differ, and nothing is believed.

    The result is remembered by the content of its arguments.
    """
    if not past and Belief.of(space) is None:
        return None
    sizes = tuple(sorted(context.items()))
    return _remembered(_Hashed(space, (repr(space.parameters), *map(name_of_rule, space.rules))), past, sizes)


class _Hashed:
    """A space that is compared by a text of its content."""

    def __init__(self, space: SearchSpace, key: object) -> None:
        self.space, self.key = space, key

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hashed) and self.key == other.key


@lru_cache(maxsize=8)
@torch.no_grad()
def _remembered(hashed: _Hashed, past: tuple[PastStudy, ...], context: tuple[tuple[str, float], ...]) -> Sources | None:
    space = hashed.space
    features, cube = Features(space), Cube(space)
    every = [_points(space, features, each) for each in past]
    used = [s for s, points in enumerate(every) if points.tells]
    belief = Belief.of(space)
    if not used and belief is None:
        return None
    places = allowed_sobol(cube, NUM_PLACES, seed=0)
    studies = [every[s] for s in used]
    sources = _with_one_kernel(features, studies, belief, places)
    moves = _moves(studies, sources, places, [past[s].context for s in used], dict(context))
    if bool(moves.any()):
        studies = [points.moved(move) for points, move in zip(studies, moves, strict=True)]
        sources = _with_one_kernel(features, studies, belief, places)
    for s, points in zip(used, studies, strict=True):
        every[s] = points
    best = [points.X[points.Z.topk(min(NUM_BEST, len(points.Z))).indices] for points in studies]
    if belief is not None:
        best.append(belief.placed(torch.cat([torch.full_like(places[:1], 0.5), places[:NUM_BELIEVED]])))
    tops = cube.snap(torch.cat(best).clamp(0.0, 1.0))
    tops = tops[cube.allows(tops)]
    failures = _fit_failures(features, every) if any(len(points.X_failed) for points in every) else None
    names = [past[s].name for s in used] + ([] if belief is None else ["belief"])
    return sources._replace(candidates=torch.cat([tops, places]), names=names, failures=failures)


def _points(space: SearchSpace, features: Features, past: PastStudy) -> Points:
    fitted = fit_into(space, past)
    X, values = torch.from_numpy(fitted.X), torch.from_numpy(fitted.values)
    done = ~values.isnan()
    X_failed = X[~done]
    Z = robust(values[done]) if bool(done.any()) else values[done]
    rows = choose_evenly(Z)
    failed = torch.linspace(0, len(X_failed) - 1, min(len(X_failed), MOST), dtype=torch.float64).round().long()
    return Points(X[done][rows], Z[rows], X_failed[failed], features.of(fitted.columns))


def _fit_failures(features: Features, studies: list[Points]) -> Field:
    """The mean of the labels that the past studies expect, under the kernel that is most probable beforehand."""
    telling = [points for points in studies if points.features.numeric or points.features.categorical]
    terms, constant = [], 0.0
    for points in telling:
        kernel = ProductKernel(points.features, SHORTEST)
        covariance = kernel.at(torch.tensor(kernel.modes, dtype=torch.float64))
        Z = features(torch.cat([points.X, points.X_failed]))
        labels = torch.ones(len(Z), dtype=torch.float64)
        labels[len(points.X) :] = -1.0
        level = 2 * (len(points.X) + 1) / (len(Z) + 2) - 1  # Laplace's rule of succession
        K = covariance.matrix_and_slope(Z)[0]
        K.diagonal().add_(LABEL_NOISE)
        a = torch.cholesky_solve((labels - level)[:, None], psd_safe_cholesky(K))[:, 0]
        terms.append(Term(covariance, Z, a / len(telling)))
        constant += level / len(telling)
    return Field(features, _joined(terms), constant)


def _joined(terms: list[Term]) -> list[Term]:
    """The same sum with fewer terms: those with one kernel become one."""
    joined: dict[str, list[Term]] = {}
    for term in terms:
        joined.setdefault(repr((term.covariance.numeric, term.covariance.categorical)), []).append(term)
    return [
        Term(same[0].covariance, torch.cat([t.inputs for t in same]), torch.cat([t.weights for t in same]))
        for same in joined.values()
    ]


def choose_evenly(Z: Tensor) -> Tensor:
    """The places of ``MOST`` outcomes at most: the best third, and others evenly by rank, in their order."""
    if len(Z) <= MOST:
        return torch.arange(len(Z))
    order = Z.argsort(descending=True, stable=True)
    best = MOST // 3
    others = torch.linspace(best, len(Z) - 1, MOST - best, dtype=torch.float64).round().long()
    return torch.cat([order[:best], order[others]]).sort().values


def _with_one_kernel(features: Features, studies: list[Points], belief: Belief | None, places: Tensor) -> Sources:
    """The means of all studies under the kernel that fits their median, and the belief."""
    scales: dict[int, list[Tensor]] = {}
    noises = []
    for points in studies:
        gp = fit_gp(ProductKernel(points.features), points.X, points.Z)
        noises.append(gp.noise.log().squeeze())
        own = gp.covariance()
        for j, scale in zip(own.numeric + own.categorical, [*own.numeric_scales, *own.categorical_scales], strict=True):
            scales.setdefault(j, []).append(scale.log())
    noise = torch.stack(noises).quantile(0.5).exp().clamp_min(MIN_NOISE) if noises else places.new_tensor(MIN_NOISE)
    whole = ProductKernel(features)
    usual = dict(zip(features.numeric + features.categorical, whole.modes, strict=True))
    median = {j: float(torch.stack(scales[j]).quantile(0.5)) if j in scales else mode for j, mode in usual.items()}

    def kernel(known: Features) -> Covariance:
        logs = [median[j] for j in known.numeric + known.categorical]
        return ProductKernel(known).at(torch.tensor(logs, dtype=torch.float64))

    groups: dict[str, list[int]] = {}
    for s, points in enumerate(studies):
        groups.setdefault(repr((points.features.numeric, points.features.categorical)), []).append(s)
    S = len(studies) + (belief is not None)
    constants = torch.zeros(S, dtype=torch.float64)
    made = []
    for members in groups.values():
        covariance = kernel(studies[members[0]].features)
        inputs, weights = [], []
        for s in members:
            Z = studies[s].features(studies[s].X)
            K = covariance.matrix_and_slope(Z)[0]
            K.diagonal().add_(noise)
            constants[s], a = explain(psd_safe_cholesky(K), studies[s].Z)
            inputs.append(Z)
            column = torch.zeros(len(Z), S, dtype=torch.float64)
            column[:, s] = a
            weights.append(column)
        made.append(Group(covariance, torch.cat(inputs), torch.cat(weights)))
    ones = torch.ones_like(constants)
    sources = Sources(features, kernel(features), made, constants, ones, places, AGREE_ALONE, [], None, belief)
    spreads = sources.means(places).std(dim=0).clamp_min(1e-3)
    sources = sources._replace(spreads=spreads)
    return sources._replace(agreement=_agreement(sources, studies))


def explain(root: Tensor, Z: Tensor) -> tuple[Tensor, Tensor]:
    """The constant that fits ``Z`` (``n``) best under the covariance ``root root'``, and ``K^-1 (Z - c)``."""
    ones = torch.ones_like(Z)
    solved = torch.cholesky_solve(torch.stack([Z, ones], dim=-1), root)
    c = solved[:, 0].sum() / solved[:, 1].sum()
    return c, solved[:, 0] - c * solved[:, 1]


def _agreement(sources: Sources, studies: list[Points]) -> float:
    """The mean correlation of each study's outcomes with what the others say of them."""
    if len(studies) < 2:
        return AGREE_ALONE if studies else AGREE_BELIEF
    found = []
    for s, points in enumerate(studies):
        others = sources.means(points.X)[:, : len(studies)]
        others = (others.sum(dim=-1) - others[:, s]) / (len(studies) - 1)
        found.append(correlation(others, points.Z))
    return float(min(max(sum(found) / len(found), 0.05), 0.97))


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's correlation of two vectors; 0 if one of them is constant."""
    a, b = a - a.mean(), b - b.mean()
    norm = (a.square().sum() * b.square().sum()).sqrt()
    return float((a @ b) / norm) if norm > 1e-12 else 0.0


def _moves(
    studies: list[Points], sources: Sources, places: Tensor, contexts: list[Mapping[str, float]], here: dict[str, float]
) -> Tensor:
    """The distances by which the points of each study move for its sizes; ``S x d``."""
    known = [all(name in context for name in here) for context in contexts]
    moves = torch.zeros(len(studies), places.shape[1], dtype=torch.float64)
    if not here or sum(known) < LEAST:
        return moves
    names = sorted(here)
    logs = torch.tensor(
        [[math.log(context[name]) for name in names] for context, k in zip(contexts, known, strict=True) if k],
        dtype=torch.float64,
    )
    target = torch.tensor([math.log(here[name]) for name in names], dtype=torch.float64)
    with_sizes = [s for s, k in enumerate(known) if k]
    optima = torch.stack([_best_place(sources, s, torch.cat([places, studies[s].X])) for s in with_sizes])
    for j in _movable(sources.features.cube.space):
        slope = _slope(logs, optima[:, j])
        if slope is not None:
            moves[with_sizes, j] = ((target - logs) @ slope).clamp(-FARTHEST, FARTHEST)
    return moves


def _movable(space: SearchSpace) -> list[int]:
    """The columns of plain numbers: labels, special values and the middle of what is inactive have no other place."""
    plain = [isinstance(parameter, Number) and not parameter.special for parameter in space]
    return [j for j, name in enumerate(space.names) if plain[j] and not space.conditions[name]]


def _best_place(sources: Sources, s: int, X: Tensor) -> Tensor:
    mean = sources.means(X)[:, s]
    weights = ((mean - mean.max()) / SOFTNESS).softmax(dim=0)
    return weights @ X


def _slope(logs: Tensor, y: Tensor) -> Tensor | None:
    """The ridge regression of a column's optima on log sizes; ``None`` if it predicts left-out ones no better."""

    def fit(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        A, center = logs[rows], logs[rows].mean(dim=0)
        A = A - center
        slope = torch.linalg.solve(
            A.mT @ A + RIDGE * torch.eye(A.shape[1], dtype=A.dtype), A.mT @ (y[rows] - y[rows].mean())
        )
        return slope, center, y[rows].mean()

    everything = torch.arange(len(y))
    errors = []
    for i in range(len(y)):
        slope, center, mean = fit(everything[everything != i])
        errors.append([y[i] - mean - (logs[i] - center) @ slope, y[i] - mean])
    by_size, by_mean = torch.tensor(errors, dtype=torch.float64).square().mean(dim=0).sqrt()
    return fit(everything)[0] if by_size < BETTER * by_mean else None
