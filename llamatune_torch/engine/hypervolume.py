"""Several objectives: how much a point can be expected to widen the Pareto front.

The hypervolume of a front is the volume between it and a reference point, the worst outcome that is of any use. The
first factor of the acquisition is the logarithm of its expected improvement,

    E[HV(front(x)) - HV(front)],

where the true outcomes at observed points are uncertain too: qLogNEHVI (Daulton et al., 2021, arXiv:2105.08195; in the
logarithm, Ament et al., 2023, arXiv:2310.20708), from BoTorch, with ``X_pending`` for running trials. Each objective
has a GP of its own on the same features, fitted to what trials have measured of it.

Hypervolume weighs outcomes by their size, so they are not warped as a single objective's are (``outcome.py``). They are
standardised, and one that is far below the better half is brought nearer, so that a diverged run hides no differences.

A point whose true outcomes are dominated in all samples does not change the front, so it is left out.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from botorch.acquisition.multi_objective import logei
from botorch.models.model import ModelList
from botorch.sampling import SobolQMCNormalSampler
from botorch.sampling.list_sampler import ListSampler
from botorch.utils.multi_objective.hypervolume import Hypervolume
from botorch.utils.multi_objective.pareto import is_non_dominated
from linear_operator.utils.cholesky import psd_safe_cholesky
from torch import Tensor

from llamatune_torch.engine.acquisition import Factor
from llamatune_torch.engine.data import TrainingData, signed_objectives
from llamatune_torch.engine.kernel import ProductKernel
from llamatune_torch.engine.outcome import standardize
from llamatune_torch.engine.prediction import JITTER
from llamatune_torch.engine.qmc import normal_samples
from llamatune_torch.engine.surrogate import Surrogate, fit_gp
from llamatune_torch.errors import ObjectiveError
from llamatune_torch.study import Study

# Where ninja is installed, BoTorch would compile a C++ kernel for the processor at hand in the middle of a search, into
# a cache that some users may not write. Advice is to be the same on all machines.
logei._load_attempted = True

MARGIN = 0.1  # of the front's width, by which an inferred reference point lies below its worst values
FAR = 10.0  # root mean square distances of the better half from the median: no outcome counts as worse than this
NUM_SAMPLES = 256  # of the true outcomes, to tell which observed points may be on the front


class Objectives(NamedTuple):
    """The objectives of a study as the engine sees them: ``m`` of them at ``n`` points that have measured all.

    surrogates   one for each
    X            n x d   the points to improve on
    reference    m       in the unit of the surrogates
    """

    surrogates: list[Surrogate]
    X: Tensor
    reference: Tensor


def fit_objectives(study: Study, data: TrainingData) -> Objectives | None:
    """Fits a surrogate to each objective; ``None`` if there is only one, or while no trial has measured them all."""
    if not study.goal.others:
        return None
    Y = signed_objectives(study)[data.rows].to(data.X)
    complete = Y.isfinite().all(dim=-1)
    feasible = complete & data.feasible
    used = feasible if bool(feasible.any()) else complete
    if not bool(used.any()):
        return None
    surrogates, seen, references = [], [], []
    for j, objective in enumerate(study.objectives):
        known = Y[:, j].isfinite()
        tamed = tame(Y[known, j])
        surrogates.append(fit_gp(ProductKernel(data.features), data.X[known], standardize(tamed)))
        center, unit = tamed.mean(), tamed.std(correction=0).clamp_min(1e-12 * max(1.0, float(tamed.abs().max())))
        seen.append((tamed[used[known]] - center) / unit)
        given = math.nan if objective.reference is None else objective.signed(objective.reference)
        references.append((given - center) / unit)
    reference, inferred = torch.stack(references), infer_reference(torch.stack(seen, dim=-1))
    return Objectives(surrogates, data.X[used], torch.where(reference.isnan(), inferred, reference))


def hypervolume_improvement(objectives: Objectives, X_pending: Tensor, num_samples: int, seed: int) -> Factor:
    """The first factor of the acquisition: the log expected improvement of the hypervolume.

    Args:
        objectives: from :func:`fit_objectives`.
        X_pending: points being evaluated, ``m x d``; ``m`` may be 0.
        num_samples: of the Monte Carlo average.
        seed: seeds the base samples.
    """
    samplers = (
        SobolQMCNormalSampler(torch.Size([num_samples]), seed=seed + j) for j in range(len(objectives.surrogates))
    )
    acquisition = logei.qLogNoisyExpectedHypervolumeImprovement(
        ModelList(*(surrogate.prediction() for surrogate in objectives.surrogates)),
        objectives.reference,
        objectives.X[may_be_on_front(objectives, seed)],
        ListSampler(*samplers),
        X_pending=X_pending if len(X_pending) else None,
        prune_baseline=False,  # BoTorch's draws from the global random generator
        cache_root=False,
    )
    return Factor("hypervolume", acquisition)


@torch.no_grad()
def may_be_on_front(objectives: Objectives, seed: int) -> Tensor:
    """Marks the observed points that one of ``NUM_SAMPLES`` joint samples of the outcomes has on its front; ``n``."""
    n = len(objectives.X)
    samples = []
    for j, surrogate in enumerate(objectives.surrogates):
        mean, covariance = surrogate.predictor().joint(objectives.X)
        covariance.diagonal().add_(JITTER)
        samples.append(mean + normal_samples(NUM_SAMPLES, n, seed + j).to(mean) @ psd_safe_cholesky(covariance).mT)
    return is_non_dominated(torch.stack(samples, dim=-1), deduplicate=False).any(dim=0)


@torch.no_grad()
def spread_front(objectives: Objectives, n: int) -> Tensor:
    """At most ``n`` observed points on the front of the posterior means, evenly from end to end; ``k x d``."""
    means = torch.stack([s.posterior(objectives.X).mean.squeeze(-1) for s in objectives.surrogates], dim=-1)
    front = is_non_dominated(means).nonzero().squeeze(-1)
    order = front[means[front, 0].argsort()]
    return objectives.X[order[torch.linspace(0, len(order) - 1, min(n, len(order))).round().long()]]


def tame(Y: Tensor) -> Tensor:
    """Outcomes (``n``, larger is better), none of which is more than ``FAR`` spreads of the better half below it."""
    median = torch.quantile(Y, 0.5, interpolation="higher")
    spread = (Y[Y >= median] - median).square().mean().sqrt()
    return Y.clamp_min(median - FAR * spread) if spread > 0 else Y


def infer_reference(Y: Tensor) -> Tensor:
    """A point a little worse than the worst values on the front of ``Y`` (``n x m``); shape ``m``.

    It lies below them by ``MARGIN`` of the front's width; of a front without width, by that of all outcomes, or by 1.
    """
    front = Y[is_non_dominated(Y)]
    width = front.amax(dim=0) - front.amin(dim=0)
    width = torch.where(width > 0, width, Y.amax(dim=0) - Y.amin(dim=0))
    return front.amin(dim=0) - MARGIN * torch.where(width > 0, width, torch.ones_like(width))


def hypervolume_trace(study: Study) -> list[float]:
    """The hypervolume of the Pareto front after each completed trial, in the product of the objectives' units.

    It is measured from the objectives' references; where one has none, from that which the whole study implies. So it
    never falls, but traces of different studies compare only with references.

    Raises:
        ObjectiveError: the study has one objective only.
    """
    if not study.goal.others:
        raise ObjectiveError("a hypervolume is of several objectives, but this study has one")
    Y = signed_objectives(study)
    counts = torch.tensor([study.is_feasible(trial) for trial in study.completed], dtype=torch.bool)
    counts &= Y.isfinite().all(dim=-1)
    if not bool(counts.any()):
        return [0.0] * len(Y)
    given = [math.nan if each.reference is None else each.signed(each.reference) for each in study.objectives]
    reference = torch.tensor(given, dtype=Y.dtype)
    reference = torch.where(reference.isnan(), infer_reference(Y[counts]), reference)
    volume, trace = Hypervolume(reference), []
    for k in range(1, len(Y) + 1):
        seen = Y[:k][counts[:k]]
        seen = seen[(seen > reference).all(dim=-1)]
        trace.append(float(volume.compute(seen[is_non_dominated(seen)])) if len(seen) else 0.0)
    return trace
