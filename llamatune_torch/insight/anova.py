"""A surrogate that is a sum: of what each parameter does alone, and of what each pair does besides.

    y = c + sum_i f_i(x_i) + sum_ij f_ij(x_i, x_j) + g(x) + e

The search's own surrogate (``engine/surrogate.py``) has one product kernel. It predicts well. But of thirty trials it
takes what it has not seen for interactions of everything with everything. Most functions are sums of few terms, and
this prior says so: the orthogonal additive kernel (Lu et al., 2022, arXiv:2206.09861; Durrande et al., 2013),

    k(x, x') = sum_i v_i k_i(x_i, x'_i) + sum_ij w_i w_j k_i(x_i, x'_i) k_j(x_j, x'_j) + r prod_i m_i(x_i, x'_i).

``k_i`` has mean zero under the distribution of ``x_i``, and variance one. So each term has mean zero over each of its
parameters; the terms are orthogonal, and their variances add up: the Sobol indices in closed form (``importance.py``).

``k_i`` is a Matern-5/2 between ordinary values, made so, and knows two of different kinds for nothing else: special
values and choices are kinds of their own. Where a parameter is inactive, its terms are zero. ``m_i`` is the same before
it was centred; what it explains belongs to no term, as noise does not: a search tries the same place again and again,
and what it sees there is no news of elsewhere.

Which length scales ``l_i`` and variances ``v_i``, ``w_i`` are plausible is most of what thirty trials leave open. So
they are drawn from their posterior by Hamiltonian Monte Carlo (Neal, 2011, "MCMC using Hamiltonian dynamics"). Then
functions are drawn, term by term, from the eigenfunctions of ``k_i``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from llamatune_torch.engine.kernel import matern
from llamatune_torch.insight.region import Axes

NUM_WAVES = 10  # eigenfunctions of a parameter, in its own term
NUM_PAIRED = 6  # of them, in the term of a pair
NEGLIGIBLE = 1e-4  # share of the variance: the term of such a pair is left to the noise
NUM_BELIEFS = 12  # draws of the hyperparameters
NUM_FUNCTIONS = 16  # of each of them
MOST_FITTED = 50  # trials that the hyperparameters are drawn for
WARM_UP, BETWEEN, LEAPS = 25, 2, 5  # trajectories before the first draw, from one to the next, and steps of one
ACCEPTED = 0.8  # the share of trajectories at which the step aims (Neal, 2011, section 5.4.4)
NUM_SCALES = 9  # length scales, for which kernels are computed
JITTER = 1e-6
LEAST = 1e-9  # variance of a kernel
TINY_SHARE = 1e-8  # of an eigenfunction: it is left out

# Priors of logarithms: mean and standard deviation.
SCALE = (math.log(0.5), 0.7)  # of a length scale, as a share of the range
VARIANCE = (-1.0, 2.5)  # of a parameter's own variance, times the number of parameters
PAIRED = (-0.3, 1.5)  # of ``w_i / v_i``: who matters alone mostly matters together with others
NOISE = (-4.0, 1.5)
REST = (-3.0, 1.5)  # of the variance of what is no sum of terms

# The share of the trials that each set of functions is drawn from, chosen at random. No function is quite what a prior
# says; that shows in what different trials say, and widens the intervals as it should (Huggins and Miller, 2023,
# "Reproducible model selection using bagged posteriors").
BAG = 0.7


class Theta(NamedTuple):
    """The hyperparameters: ``d`` length scales, variances and shares in pairs; the noise's variance, the constant."""

    scales: Tensor
    variances: Tensor
    paired: Tensor
    rest: Tensor
    noise: Tensor
    constant: Tensor


class Prior:
    """The prior of the hyperparameters: independent normal ones of their logarithms, a standard one of the constant.

    They are known by ``z``, ``3 d + 3`` standard normal numbers.
    """

    def __init__(self, d: int) -> None:
        self.d = d
        each = [SCALE, (VARIANCE[0] - math.log(d), VARIANCE[1]), PAIRED]
        rows = [prior for prior in each for _ in range(d)] + [REST, NOISE, (0.0, 1.0)]
        self._mean, self.sd = torch.tensor(rows, dtype=torch.float64).unbind(dim=-1)

    def theta(self, z: Tensor) -> Theta:
        values = self._mean + self.sd * z
        logs, constant = values[:-1].exp(), values[-1]
        scales, variances, shares = logs[:-2].split(self.d)
        return Theta(scales, variances, variances * shares, logs[-2], logs[-1], constant)


class Terms:
    """The kernels ``k_i`` for given length scales, as matrices.

    Args:
        axes: the values of the parameters: a quadrature, whose weights add up to 1 along each.
        scales: ``d`` length scales.
    """

    def __init__(self, axes: Axes, scales: Tensor) -> None:
        self._axes, self._scales = axes, scales
        K = self._base(axes, axes)  # d x m x m
        self._over = (K @ axes.weights.unsqueeze(-1)).squeeze(-1)  # d x m, the mean over one of the two
        self._mean = (self._over * axes.weights).sum(dim=-1)  # d, over both
        K = K - self._over.unsqueeze(-1) - self._over.unsqueeze(-2) + self._mean[:, None, None]
        self._variance = (K.diagonal(dim1=-2, dim2=-1) * axes.weights).sum(dim=-1).clamp_min(LEAST)
        self._K = K / self._variance[:, None, None]

    def _base(self, a: Axes, b: Axes) -> Tensor:
        """The kernels before they are centred, ``d x |a| x |b|``."""
        r2 = (a.places.unsqueeze(-1) - b.places.unsqueeze(-2)).div(self._scales[:, None, None]).square()
        return (a.kinds.unsqueeze(-1) == b.kinds.unsqueeze(-2)) * (1 + matern(r2)) / 2

    def _mean_at(self, a: Axes) -> Tensor:
        return (self._base(a, self._axes) @ self._axes.weights.unsqueeze(-1)).squeeze(-1)

    def between(self, a: Axes) -> Tensor:
        """``k_i`` between all values of ``a``; ``d x n x n``, zero where a parameter is inactive."""
        over = self._mean_at(a)
        K = self._base(a, a) - over.unsqueeze(-1) - over.unsqueeze(-2) + self._mean[:, None, None]
        return K / self._variance[:, None, None] * a.active.unsqueeze(-1) * a.active.unsqueeze(-2)

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        """The largest eigenvalues of each kernel, which add up to 1 at most, and its eigenvectors at the quadrature."""
        root = self._axes.weights.sqrt()
        shares, vectors = torch.linalg.eigh(self._K * root.unsqueeze(-1) * root.unsqueeze(-2))
        shares, vectors = shares.flip(-1)[:, :NUM_WAVES].clamp_min(0), vectors.flip(-1)[..., :NUM_WAVES]
        missing = NUM_WAVES - shares.shape[-1]  # a quadrature of few values
        return torch.nn.functional.pad(shares, (0, missing)), torch.nn.functional.pad(vectors, (0, missing))

    def waves(self, a: Axes) -> tuple[Tensor, Tensor]:
        """The eigenfunctions at the values of ``a``, ``d x n x NUM_WAVES``, and their shares of the variance."""
        shares, vectors = self._eigen
        cross = self._base(a, self._axes) - self._mean_at(a).unsqueeze(-1) - self._over.unsqueeze(-2)
        cross = (cross + self._mean[:, None, None]) / self._variance[:, None, None]
        known = shares > TINY_SHARE
        values = (cross * self._axes.weights.sqrt().unsqueeze(-2)) @ vectors
        values = values / torch.where(known, shares, 1.0).unsqueeze(-2)
        return values * known.unsqueeze(-2) * a.active.unsqueeze(-1), shares


def covariance(K: Tensor, theta: Theta) -> Tensor:
    """The sum of all terms, from the ``k_i`` between ``n`` trials (``d x n x n``)."""
    alone, paired = K * theta.variances[:, None, None], K * theta.paired[:, None, None]
    return alone.sum(dim=0) + (paired.sum(dim=0).square() - paired.square().sum(dim=0)) / 2


class Likelihood:
    """The log posterior of the hyperparameters and its slope, of which a chain asks some hundred times.

    The kernels of ``NUM_SCALES`` length scales are computed once. Those between are mixtures of their neighbours.

    Args:
        axes: the quadrature along each of ``d`` parameters.
        trials: the parameters of ``n`` trials.
        Y: their outcomes.
        prior: of the hyperparameters.
    """

    def __init__(self, axes: Axes, trials: Axes, Y: Tensor, prior: Prior) -> None:
        self.Y, self.prior, self.d = Y, prior, len(axes.weights)
        self._logs = SCALE[0] + 3 * SCALE[1] * torch.linspace(-1, 1, NUM_SCALES, dtype=torch.float64)
        scales = self._logs.exp().unsqueeze(-1).expand(-1, self.d)
        self._tables = torch.stack([Terms(axes, each).between(trials) for each in scales])  # NUM_SCALES x d x n x n
        self._rest = rest_between(trials)
        self._identity = torch.eye(len(Y), dtype=torch.float64)

    def __call__(self, z: Tensor) -> tuple[float, Tensor]:
        """The log posterior density of ``z``, up to a constant, and its slope; ``-inf`` where it cannot be computed.

        With ``W = (a a' - K^-1) / 2`` and ``a = K^-1 (Y - c)`` the slope in a hyperparameter is ``tr(W dK)``
        (Rasmussen & Williams, 2006, eq. 5.9).
        """
        if not bool(z.isfinite().all()):
            return -math.inf, torch.zeros_like(z)
        theta = self.prior.theta(z)
        at = (theta.scales.log() - self._logs[0]) / (self._logs[1] - self._logs[0])
        below = at.floor().clamp(0, NUM_SCALES - 2).long()
        share = (at - below).clamp(0, 1)
        every = torch.arange(self.d)
        low, change = self._tables[below, every], self._tables[below + 1, every] - self._tables[below, every]
        K = low + share[:, None, None] * change
        v, w = theta.variances[:, None, None], theta.paired[:, None, None]
        weighted = w * K
        others = weighted.sum(dim=0) - weighted  # of each parameter
        alone = (v * K).sum(dim=0)
        total = alone + (weighted * others).sum(dim=0) / 2 + theta.rest * self._rest
        root, failed = torch.linalg.cholesky_ex(total + (theta.noise + JITTER) * self._identity)
        if int(failed):
            return -math.inf, torch.zeros_like(z)
        r = (self.Y - theta.constant).unsqueeze(-1)
        a = torch.cholesky_solve(r, root)
        value = -(r * a).sum() / 2 - root.diagonal().log().sum() - z.square().sum() / 2
        W = (a @ a.mT - torch.cholesky_inverse(root)) / 2
        of_variances = torch.einsum("ij,dij->d", W, K)
        of_paired = torch.einsum("ij,dij,dij->d", W, K, others)
        inside = (at > 0) & (at < NUM_SCALES - 1)
        of_share = v[:, 0, 0] * torch.einsum("ij,dij->d", W, change)
        of_share = of_share + w[:, 0, 0] * torch.einsum("ij,dij,dij->d", W, change, others)
        slope = torch.cat(
            [
                of_share * inside / (self._logs[1] - self._logs[0]),
                of_variances * theta.variances + of_paired * theta.paired,
                of_paired * theta.paired,
                torch.stack([(W * self._rest).sum() * theta.rest, W.trace() * theta.noise, a.sum()]),
            ]
        )
        return float(value), self.prior.sd * slope - z


def rest_between(a: Axes) -> Tensor:
    """The kernel of what is no sum of terms, between all values of ``a``; ``n x n``."""
    r2 = (a.places.unsqueeze(-1) - a.places.unsqueeze(-2)).div(math.exp(SCALE[0])).square()
    return ((a.kinds.unsqueeze(-1) == a.kinds.unsqueeze(-2)) * (1 + matern(r2)) / 2).prod(dim=0)


class Functions(NamedTuple):
    """Functions that are plausible given the trials, ``s`` of them: weights of the eigenfunctions of the same kernels.

    terms      the kernels
    constant   a scalar
    alone      d x NUM_WAVES x s
    paired     pairs x NUM_PAIRED x NUM_PAIRED x s, of the pairs ``combinations(range(d), 2)``
    """

    terms: Terms
    constant: Tensor
    alone: Tensor
    paired: Tensor


def draw_functions(axes: Axes, trials: Axes, Y: Tensor, seed: int) -> list[Functions]:
    """Draws functions from the posterior: ``NUM_FUNCTIONS`` for each of ``NUM_BELIEFS`` draws of hyperparameters.

    Args:
        axes: the quadrature along each of ``d`` parameters.
        trials: the parameters of ``n`` trials.
        Y: their outcomes, zero mean and unit variance.
        seed: of all that is random.
    """
    generator = torch.Generator().manual_seed(seed)
    n, d = len(Y), len(axes.weights)
    rows = torch.linspace(0, n - 1, min(n, MOST_FITTED), dtype=torch.float64).round().long()
    some, Y_some, prior = trials.rows(rows), Y[rows], Prior(d)

    chain = hamiltonian(
        Likelihood(axes, some, Y_some, prior), torch.zeros(3 * d + 3, dtype=torch.float64), NUM_BELIEFS, generator
    )
    pairs = list(combinations(range(d), 2))
    with torch.no_grad():
        found, m = [], max(2, round(BAG * n))
        for z in chain:
            bag = torch.randperm(n, generator=generator)[:m].sort().values
            found.append(_draw_given(axes, trials.rows(bag), Y[bag], prior.theta(z), pairs, generator))
        return found


def _draw_given(
    axes: Axes, trials: Axes, Y: Tensor, theta: Theta, pairs: list[tuple[int, int]], generator: torch.Generator
) -> Functions:
    terms = Terms(axes, theta.scales)
    waves, shares = terms.waves(trials)
    n, (d, k) = len(Y), shares.shape
    alone_sd = (theta.variances.unsqueeze(-1) * shares).sqrt()
    places = torch.tensor(pairs, dtype=torch.long).view(-1, 2)
    strength = theta.paired[places].prod(dim=-1)
    kept = strength > NEGLIGIBLE * (theta.variances.sum() + strength.sum())
    first, second = places[kept].unbind(dim=-1)
    few = (theta.paired.unsqueeze(-1) * shares[:, :NUM_PAIRED]).sqrt()
    paired_sd = few[first].unsqueeze(-1) * few[second].unsqueeze(-2)
    few_waves = waves[..., :NUM_PAIRED]
    products = few_waves[first].unsqueeze(-1) * few_waves[second].unsqueeze(-2)  # kept pairs x n x K x K
    sd = torch.cat([alone_sd.flatten(), paired_sd.flatten()])
    products = products.transpose(0, 1).reshape(n, len(first) * NUM_PAIRED**2)
    features = torch.cat([waves.transpose(0, 1).reshape(n, d * k), products], dim=-1) * sd
    exact = covariance(terms.between(trials), theta).diagonal()
    K = features @ features.mT
    left = (exact - K.diagonal()).clamp_min(0) + theta.noise + JITTER  # with the eigenfunctions that are left out
    rest = theta.rest * rest_between(trials)
    root = torch.linalg.cholesky(K + left.diag() + rest)
    noise_root = torch.linalg.cholesky(left.diag() + rest)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    w = normal(len(sd), NUM_FUNCTIONS)
    missing = (Y - theta.constant).unsqueeze(-1) - features @ w - noise_root @ normal(n, NUM_FUNCTIONS)
    w = (w + features.mT @ torch.cholesky_solve(missing, root)) * sd.unsqueeze(-1)
    alone, of_kept = w.split([d * k, len(first) * NUM_PAIRED**2])
    paired = of_kept.new_zeros(len(pairs), NUM_PAIRED, NUM_PAIRED, NUM_FUNCTIONS)
    paired[kept] = of_kept.view(len(first), NUM_PAIRED, NUM_PAIRED, NUM_FUNCTIONS)
    return Functions(terms, theta.constant, alone.view(d, k, NUM_FUNCTIONS), paired)


def hamiltonian(
    log_density: Callable[[Tensor], tuple[float, Tensor]], z: Tensor, num: int, generator: torch.Generator
) -> list[Tensor]:
    """``num`` draws from a density, by Hamiltonian Monte Carlo; the step is learnt before the first of them.

    Args:
        log_density: up to a constant, and its slope; ``-inf`` where there is nothing.
        z: where to begin.
        num: how many draws.
        generator: of all that is random.
    """
    value, slope = log_density(z)
    step, drawn = 0.15, []
    for i in range(WARM_UP + num * BETWEEN):
        momentum = torch.randn(len(z), generator=generator, dtype=torch.float64)
        coin, shaken = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        start, length = value - float(momentum.square().sum()) / 2, (0.8 + 0.4 * shaken) * step
        at, at_value, at_slope = z, value, slope
        for _ in range(LEAPS):
            momentum = momentum + length / 2 * at_slope
            at = at + length * momentum
            at_value, at_slope = log_density(at)
            if at_value == -math.inf:
                break
            momentum = momentum + length / 2 * at_slope
        probability = math.exp(min(0.0, at_value - float(momentum.square().sum()) / 2 - start))
        if coin < probability:
            z, value, slope = at, at_value, at_slope
        if i < WARM_UP:
            step *= math.exp((probability - ACCEPTED) / math.sqrt(1 + i / 4))
        elif (i - WARM_UP) % BETWEEN == BETWEEN - 1:
            drawn.append(z)
    return drawn
