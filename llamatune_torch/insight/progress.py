"""Progress of a search: what it has found and spent, what random search would have, what going on may bring."""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import Tensor

from llamatune_torch.engine.acquisition import posterior_mean
from llamatune_torch.engine.crash import crash_factors
from llamatune_torch.engine.cube import Cube
from llamatune_torch.engine.data import TrainingData
from llamatune_torch.engine.feasibility import limit_factors
from llamatune_torch.engine.qmc import normal_samples, sobol
from llamatune_torch.engine.recommend import recommend
from llamatune_torch.engine.surrogate import Surrogate
from llamatune_torch.engine.why import expect
from llamatune_torch.errors import NoCompletedTrialError
from llamatune_torch.insight.effects import Scale
from llamatune_torch.insight.importance import as_interval
from llamatune_torch.insight.records import COVERAGE, Interval, Progress, Step
from llamatune_torch.seeds import derived_seed
from llamatune_torch.settings import Settings
from llamatune_torch.study import Study
from llamatune_torch.trial import Trial

NUM_RANDOM = 512  # settings that random search is imagined to draw from
NUM_SAMPLES = 256  # joint draws of what is not known
NUM_NEXT = 10  # evaluations that going on is judged by
NUM_NEAR = 128  # settings around the best that these may be, besides random ones
NEAR = 0.05  # of the range, the standard deviation of their distance
LIKELY = 0.5  # the probability to work and to keep limits, from which a setting may be tried
NUM_RECENT = 20  # trials whose cost says what the next one costs
MOST_COMPARED = 200  # trials, the best ones by the surrogate, that may be the best
JITTER = 1e-6


class Foresight:
    """The surrogate's word on settings that were not tried: outcomes, and whether they would count.

    Args:
        study: the record.
        data: of the study.
        surrogate: fitted to ``data``.
        to_metric: from robust outcomes to the metric; increasing, or decreasing where the study minimises.
        settings: the seed.
    """

    def __init__(
        self, study: Study, data: TrainingData, surrogate: Surrogate, to_metric: Scale, settings: Settings
    ) -> None:
        self.study, self.data, self.surrogate, self.to_metric = study, data, surrogate, to_metric
        self.seed = derived_seed(settings.seed, len(study.trials), 15)
        self._factors = [*crash_factors(data), *limit_factors(study, data)]

    def works(self, X: Tensor) -> Tensor:
        """The probability that a run at each of ``X`` (``n x d``) works and keeps all limits; shape ``n``."""
        probability = X.new_ones(len(X))
        for factor in self._factors:
            probability = probability * factor.log_value(X.unsqueeze(-2)).exp()
        return probability

    def random_search(self, counts: list[int]) -> list[Interval | None]:
        """The best of so many random runs each: the median and the interval.

        A random run is better than ``y`` with the probability ``p(y)``, its luck included. The best of ``k`` is not
        with ``(1 - p(y))^k``. ``None`` where it is likelier that none of them works.

        Where nothing is known, a surrogate expects what the average trial has, and a search has tried good places. So
        this flatters random search in spaces of many parameters (Hartmann-6), rather than the search.
        """
        X = sobol(Cube(self.study.space), NUM_RANDOM, self.seed).to(self.data.X)
        posterior = self.surrogate.posterior(X, observation_noise=True)
        sd = posterior.variance.squeeze(-1).sqrt()
        mean = posterior.mean.squeeze(-1)
        low, high = float((mean - 6 * sd).min()), float((mean + 6 * sd).max())
        y = torch.linspace(low, high, 512, dtype=mean.dtype, device=mean.device)
        below = torch.special.ndtr((y - mean.unsqueeze(-1)) / sd.unsqueeze(-1))
        share = 1 - (self.works(X).unsqueeze(-1) * (1 - below)).mean(dim=0)  # of runs that are no better than y
        tail = (1 - COVERAGE) / 2
        levels = share.new_tensor([tail, 0.5, 1 - tail]) ** (1 / share.new_tensor(counts).unsqueeze(-1))
        places = torch.searchsorted(share.contiguous(), levels).clamp_max(len(y) - 1)
        bounds = self.to_metric(y[places]).tolist()
        known = (share[0] < levels[:, 1]).tolist()
        return [
            Interval(ends[1], min(ends), max(ends)) if likely else None
            for ends, likely in zip(bounds, known, strict=True)
        ]

    def is_best(self, winner: Trial) -> float:
        """The probability that the winner is, on average over seeds, the best of all that were tried."""
        baseline = self.data.baseline
        top = posterior_mean(self.surrogate, baseline).topk(min(len(baseline), MOST_COMPARED)).indices
        x = Cube(self.study.space).encode(winner.params).to(baseline)
        others = baseline[top]
        others = others[~(others == x).all(dim=-1)]
        draws = self._draw(torch.cat([x.unsqueeze(0), others]), NUM_SAMPLES)
        return float((draws.argmax(dim=0) == 0).double().mean())

    def gain(self, winner: Trial) -> Interval | None:
        """The gain of ten more runs over the winner: of ten places, each the best of a plausible function.

        They are chosen all at once. A search learns from each, so it may do better. ``None`` where too few settings are
        likely to work.
        """
        cube = Cube(self.study.space)
        x = cube.encode(winner.params).to(self.data.X)
        near = x + NEAR * normal_samples(NUM_NEAR, len(x), self.seed).to(x)
        X = torch.cat([sobol(cube, NUM_RANDOM, self.seed).to(x), cube.snap(near.clamp(0, 1))])
        X = X[(self.works(X) > LIKELY) & cube.allows(X)]
        if len(X) < NUM_NEXT:
            return None
        draws = self._draw(torch.cat([x.unsqueeze(0), X]), NUM_SAMPLES)
        chosen = draws[:, :NUM_NEXT].argmax(dim=0)
        own, best = draws[0, NUM_NEXT:], draws[chosen, NUM_NEXT:].max(dim=0).values
        better = (self.to_metric(torch.maximum(own, best)) - self.to_metric(own)).abs()
        return Interval(*(float(each) for each in as_interval(better)))

    def value(self, winner: Trial) -> Interval:
        """The value of the winner: expected, and the interval of a run on a fresh seed."""
        x = Cube(self.study.space).encode(winner.params).to(self.data.X)
        return Interval(*expect(self.study, self.data, self.surrogate, x))

    def _draw(self, X: Tensor, num: int) -> Tensor:
        """Joint draws of average outcomes at ``X`` (``n x d``); ``n x num``."""
        mean, covariance = self.surrogate.predictor().joint(X)
        root = torch.linalg.cholesky(covariance + JITTER * torch.eye(len(X), dtype=X.dtype, device=X.device))
        generator = torch.Generator().manual_seed(self.seed)
        normal = torch.randn(len(X), num, generator=generator, dtype=torch.float64, device=generator.device)
        draws: Tensor = mean.unsqueeze(-1) + root @ normal.to(X)
        return draws


def look_back(study: Study, settings: Settings, foresight: Foresight | None) -> Progress:
    """Tells where the search stands; what needs a surrogate is left out without one."""
    seconds: defaultdict[str, float] = defaultdict(float)
    failures: dict[str, tuple[int, float]] = {}
    for trial in study.trials:
        seconds[str(trial.state)] += trial.cost or 0.0
    for trial in study.failed:
        n, spent = failures.get(trial.reason or "unknown", (0, 0.0))
        failures[trial.reason or "unknown"] = n + 1, spent + (trial.cost or 0.0)
    try:
        winner = recommend(study, settings)
    except NoCompletedTrialError:
        winner = None
    known = foresight if winner is not None else None
    costs = [trial.cost for trial in study.completed if trial.cost is not None][-NUM_RECENT:]
    return Progress(
        steps=_steps(study, foresight),
        winner=None if winner is None else winner.number,
        is_best=None if known is None or winner is None else known.is_best(winner),
        value=None if known is None or winner is None else known.value(winner),
        gain=None if known is None or winner is None else known.gain(winner),
        gain_cost=NUM_NEXT * math.fsum(costs) / len(costs) if costs else None,
        seconds=dict(seconds),
        saved=study.saved,
        failures=dict(sorted(failures.items(), key=lambda item: -item[1][0])),
    )


def _steps(study: Study, foresight: Foresight | None) -> tuple[Step, ...]:
    finished = sorted(study.completed, key=lambda trial: (trial.finished or 0.0, trial.number))
    counts = [k + 1 for k in range(len(finished))]
    random = [None] * len(finished) if foresight is None else foresight.random_search(counts)
    steps, best = [], math.nan
    for trial, band in zip(finished, random, strict=True):
        value = trial.value or 0.0
        if study.is_feasible(trial) and (math.isnan(best) or study.better(value, best)):
            best = value
        steps.append(Step(trial.number, value, best, band))
    return tuple(steps)
