"""The crash model: the probability that parameters work at all. A failure teaches where not to go.

Failed trials (out of memory, nan, an exception) have no value, so the surrogate cannot learn from them. A second GP
does. It is fitted to labels: +1 for a trial that completed, -1 for one that failed. The probability of success at
``x`` is that of a positive latent value,

    P(works | x) = Phi(mu(x) / sqrt(var(x) + noise)).

Least-squares classification is cruder than a Bernoulli likelihood, but exact, quick, and smooth where the acquisition
needs a gradient (Rasmussen & Williams, 2006, section 6.5). Left alone it is far too sure of itself, for two reasons.
Labels that are all +1 or -1 look free of noise: so the noise has a prior of its own, which keeps P at about
``Phi(1 / sqrt(0.2))`` = 0.99 where much has worked. A learned mean rises past +1, which says that unknown places work:
so the mean follows from the share of trials that have worked so far.

One failure among neighbours that worked may be bad luck. Length scales as short as those of a surrogate explain it by
a hole around one point, and nobody goes there again. So those of a crash model have a floor: what is narrower cannot be
told from luck by some tens of trials (benchmarks/README.md).

Exceptions other than those of memory, divergence and time have a model of their own, with a smaller weight. They may be
the same bug everywhere, or a network that fails now and then, and say little about parameters. But they may also be
refused combinations. A search to which they mean nothing asks for these until its budget is spent
(benchmarks/README.md).

Whether parameters keep limits on what they lead to (memory, latency) is another matter: the models here know only that
a trial ended without a result.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llamatune_torch.engine.acquisition import Factor
from llamatune_torch.engine.data import TrainingData
from llamatune_torch.engine.kernel import LogNormal, ProductKernel
from llamatune_torch.engine.prediction import PriorMean
from llamatune_torch.engine.surrogate import MIN_NOISE, Surrogate, fit_gp

LABEL_NOISE_PRIOR = LogNormal(-1.6, 0.5, MIN_NOISE)  # of the labels' noise variance; its median is 0.2

# The power of P(works | x) in the acquisition. Expected improvement alone would weigh P once. But improvement runs out
# as the search converges, while a wall of failures keeps its one chance in twenty. With a weight of one, many runs next
# to a memory limit failed (a few seeds: benchmarks/TRIED.md), and a failed run costs time and teaches little.
RISK_AVERSION = 10.0

# The same for exceptions.
ERROR_AVERSION = 3.0

# Of a numeric column of the unit cube. With 0.3, walls are blurred, and twice as many runs fail next to one.
SHORTEST = 0.15


class CrashModel:
    """The probability that parameters work, from labelled points.

    Args:
        kernel: the covariance of the latent value.
        X: shape ``n x d``, in the unit cube.
        works: shape ``n``, boolean.
        believed: the labels that past studies expect, as a function of points; and how far, in [0, 1].
    """

    def __init__(
        self, kernel: ProductKernel, X: Tensor, works: Tensor, believed: tuple[PriorMean, float] | None = None
    ) -> None:
        labels = torch.where(works, 1.0, -1.0).to(X)
        mean = 2 * (int(works.sum()) + 1) / (len(works) + 2) - 1  # of the labels; Laplace's rule of succession
        prior_mean = None
        if believed is not None:
            expected, belief = believed
            mean = (1 - belief) * mean
            prior_mean = lambda points: belief * expected(points)  # noqa: E731
        self.gp: Surrogate = fit_gp(kernel, X, labels, LABEL_NOISE_PRIOR, constant=mean, prior_mean=prior_mean)

    def log_probability(self, X: Tensor) -> Tensor:
        """``log P(works | x)`` of each point; ``X`` has shape ``b x 1 x d``, the result ``b``."""
        posterior = self.gp.posterior(X, observation_noise=True)
        mean, variance = posterior.mean.reshape(-1), posterior.variance.reshape(-1)
        log_probability: Tensor = torch.special.log_ndtr(mean / variance.sqrt())
        return log_probability

    def factor(self, name: str = "works", weight: float = RISK_AVERSION) -> Factor:
        """``P(works | x)`` as a factor of the acquisition."""
        return Factor(name, self.log_probability, weight)


def crash_factors(data: TrainingData, believed: tuple[PriorMean, float] | None = None) -> list[Factor]:
    """The probability that parameters work as factors of the acquisition: one for each kind of failure on record.

    Args:
        data: the study.
        believed: as of :class:`CrashModel`; there is a factor then, whatever the study knows itself.
    """
    kinds = [("works", ~data.is_error, RISK_AVERSION), ("raises nothing", data.is_error, ERROR_AVERSION)]
    factors = []
    for name, failed, weight in kinds:
        expected = believed if name == "works" else None
        if bool(failed.any()) or expected is not None:
            X = torch.cat([data.X, data.X_failed[failed]])
            works = torch.arange(len(X), device=X.device) < len(data.X)
            model = CrashModel(ProductKernel(data.features, SHORTEST), X, works, expected)
            factors.append(model.factor(name, weight))
    return factors
