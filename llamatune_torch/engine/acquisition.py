"""The acquisition: what evaluating a point is worth, given the surrogate.

One sum of logs, composed of factors instead of a class for each combination:

    log a(x) = log improvement(x) + RISK_AVERSION * log P(works | x)

Expected improvement alone would weigh P once. But improvement runs out as the search converges, while a wall of
failures keeps its one chance in twenty: with a weight of one, many runs next to a memory limit failed (a few
seeds: benchmarks/README.md), and a failed run costs time and teaches little.

With nothing running, the posterior at a single point says it all:

    name           improvement, with z = (mean - best_f - xi) / sd
    logei, ei      log E[(f - best_f - xi)+] = log sd + log(phi(z) + z Phi(z)), in log space, where its gradient does
                   not vanish (Ament et al., 2023, arXiv:2310.20708)
    logpi, pi      log P(f > best_f + xi) = log Phi(z)
    ucb            mean + kappa sd
    qlogei         as logei
    qlognei        the mean of EI over samples of what ``f`` may be at the observed points, the best of which is
                   the bar (noisy EI: Letham et al., 2019, arXiv:1706.07094)

Trials that are running (``X_pending``), or chosen before in the same batch, are fantasised: the surrogate is given
samples of what may come out of them, the formula is averaged over these, and EI's bar is what the best of them
reaches. That is the gain of the joint expected improvement over what the running trials bring anyway (Snoek et al.,
2012, arXiv:1206.2944), with the last point in closed form. Their outcomes do not matter to ucb: they shrink its sd
(Desautels et al., 2014).

"ei" and "pi" are the exponentials of "logei" and "logpi": the same maximiser, the classic landscape.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from llamatune_torch.engine.candidates import quasi_random
from llamatune_torch.engine.feasibility import Feasibility
from llamatune_torch.engine.surrogate import Predictor, Surrogate
from llamatune_torch.settings import Settings

# The power of P(works | x).
RISK_AVERSION = 4.0
PI_STEP = 1e-2  # in standard deviations of the outcomes


Improvement = Callable[[Tensor, Tensor], Tensor]  # mean (b x s) and variance (b) -> b x s


class Acquisition:
    """What a point is worth; call it with ``X`` of shape ``b x 1 x d`` to get ``b`` values.

    Args:
        predictor: the surrogate, perhaps given several fantasies.
        improvement: the first factor, in log space (UCB: as it is, a probability of failure lowers it).
        feasibility: the second factor, if any trial has failed.
        exponentiate: whether the values are returned on their natural scale.
    """

    def __init__(
        self,
        predictor: Predictor,
        improvement: Improvement,
        feasibility: Feasibility | None = None,
        exponentiate: bool = False,
    ) -> None:
        self.predictor = predictor
        self.improvement = improvement
        self.feasibility = feasibility
        self.exponentiate = exponentiate

    def __call__(self, X: Tensor) -> Tensor:
        X = X.squeeze(-2)
        by_fantasy = self.improvement(*self.predictor.moments(X))
        value = by_fantasy.squeeze(-1) if by_fantasy.shape[-1] == 1 else log_mean_exp(by_fantasy)
        if self.feasibility is not None:
            value = value + RISK_AVERSION * self.feasibility.log_probability(X)
        return value.exp() if self.exponentiate else value


def make_acquisition(
    settings: Settings,
    surrogate: Surrogate,
    X: Tensor,
    X_pending: Tensor,
    feasibility: Feasibility | None,
    seed: int,
) -> Acquisition:
    """The acquisition that ``settings`` name.

    ``best_f`` is the largest posterior mean at an observed point rather than the largest observation: of two
    noisy runs the luckier one would otherwise set a bar that nothing can be expected to pass.

    Args:
        settings: the name, ``xi``, ``kappa`` and ``mc_samples``.
        surrogate: fitted to robust outcomes, larger is better.
        X: observed points, ``n x d``.
        X_pending: points being evaluated, ``m x d``; ``m`` may be 0.
        feasibility: the probability that a point works; ``None`` if nothing has failed.
        seed: of the fantasies.
    """
    name, num_samples = settings.acquisition, settings.mc_samples
    bar = posterior_mean(surrogate, X).max().reshape(1) + settings.xi
    predictor, running = surrogate.predictor(), None
    if name == "qlognei":
        P = torch.cat([X, X_pending])
        predictor, samples = surrogate.fantasies(P, normal_samples(num_samples, len(P), seed).to(X), noisy=False)
        bar = samples.amax(dim=-1) + settings.xi
    elif name == "ucb" and len(X_pending):  # the fantasy of the mean leaves the mean as it is
        predictor, _ = surrogate.fantasies(X_pending, X.new_zeros(1, len(X_pending)))
    elif len(X_pending):
        base_samples = normal_samples(num_samples, len(X_pending), seed).to(X)
        predictor, samples = surrogate.fantasies(X_pending, base_samples)
        running = samples.amax(dim=-1)

    def log_ei(mean: Tensor, variance: Tensor) -> Tensor:
        sd = variance.sqrt().unsqueeze(-1)
        highest = bar if running is None else bar.maximum(running)
        return sd.log() + log_expected_excess((mean - highest) / sd)

    def log_pi(mean: Tensor, variance: Tensor) -> Tensor:
        log_probability: Tensor = torch.special.log_ndtr((mean - bar) / variance.sqrt().unsqueeze(-1))
        if running is None:
            return log_probability
        # Where a running trial passes the bar there is nothing left to do: a step, a little rounded off.
        return log_probability + torch.nn.functional.logsigmoid((bar - running) / PI_STEP)

    def ucb(mean: Tensor, variance: Tensor) -> Tensor:
        return mean + settings.kappa * variance.sqrt().unsqueeze(-1)

    improvement = {"logpi": log_pi, "pi": log_pi, "ucb": ucb}.get(name, log_ei)
    return Acquisition(predictor, improvement, feasibility, exponentiate=name in ("ei", "pi"))


def normal_samples(n: int, m: int, seed: int) -> Tensor:
    """Quasi-random draws from a standard normal distribution, ``n x m``: from a scrambled Sobol sequence."""
    if m > torch.quasirandom.SobolEngine.MAXDIM:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(n, m, generator=generator, dtype=torch.float64, device=generator.device)
    samples: Tensor = torch.special.ndtri(quasi_random(m, n, seed).clamp(1e-10, 1 - 1e-10))
    return samples


def log_mean_exp(values: Tensor) -> Tensor:
    """``log(mean(exp(values)))`` over the last dimension."""
    return values.logsumexp(dim=-1) - math.log(values.shape[-1])


def log_expected_excess(z: Tensor) -> Tensor:
    """``log(phi(z) + z Phi(z))``, exact to rounding also where the argument of the logarithm is zero in floats."""
    value: Tensor = _LogExpectedExcess.apply(z)  # type: ignore[no-untyped-call]  # torch's
    return value


class _LogExpectedExcess(torch.autograd.Function):
    """For ``z < -1`` with ``r = Phi(z) / phi(z)``, the scaled ``erfcx``: ``log phi(z) + log(1 - |z| r)``.

    The slope is ``Phi(z) / (phi(z) + z Phi(z))``.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        near = z.clamp_min(-1)
        cdf = torch.special.ndtr(near)
        excess = near.square().mul_(-0.5).exp_().mul_(1 / math.sqrt(2 * math.pi)) + near * cdf
        far = z.clamp_max(-1).neg_()
        ratio = torch.special.erfcx(far / math.sqrt(2)).mul_(math.sqrt(math.pi / 2))
        # 1 - |z| r tends to z^-2, into which its rounding errors grow.
        gap = torch.where(far < 1e5, 1 - far * ratio, far.pow(-2))
        is_near = z > -1
        ctx.save_for_backward(torch.where(is_near, cdf / excess, ratio / gap))
        log_density = far.square().mul_(-0.5).sub_(0.5 * math.log(2 * math.pi))
        return torch.where(is_near, excess.log(), log_density + gap.log())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        chained: Tensor = gradient * slope
        return chained


def posterior_mean(surrogate: Surrogate, X: Tensor) -> Tensor:
    """The surrogate's mean at the rows of ``X`` (``n x d``); shape ``n``."""
    return surrogate.predictor().mean_at(X)
