"""The trial to use in the end, and how sure that is: best on average, since the best value may only have been lucky.

Among many runs at the flat top of a noisy landscape, the one that came out best has the kindest noise. The surrogate
has seen all of them: its mean estimates the average outcome of each.

Its posterior also says what to expect. With mean ``m`` and variance ``v`` of the average, a run on a fresh seed is
normal with mean ``m`` and variance ``v + noise``. One trial beats another, on average over seeds, with the probability
``Phi((m1 - m2) / sqrt(v11 + v22 - 2 v12))``. The surrogate sees robust outcomes: quantiles become the metric's by the
inverse of what made them so, which is increasing (``outcome.py``).

How noisy runs are is hardly known while no parameters have run twice, and the search bets on little noise. An interval
must not. So surrogates are fitted with each of the ``NOISES``, and all count that are plausible: whose likelihood is at
least ``exp(-PLAUSIBLE)`` of the best one's, as in a profile likelihood interval of 95 %. The interval covers theirs,
and a probability is the least of theirs. Of a winner that was confirmed on fresh seeds, these runs alone give the
interval (``confirmed.py``).
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from llamatune_torch.engine.acquisition import posterior_mean
from llamatune_torch.engine.cube import Cube
from llamatune_torch.engine.data import TrainingData, choose_device, in_the_metric, training_data, with_own_modes
from llamatune_torch.engine.kernel import LogNormal, ProductKernel
from llamatune_torch.engine.suggest import fit_surrogate
from llamatune_torch.engine.surrogate import fit_gp
from llamatune_torch.settings import Settings
from llamatune_torch.study import Study
from llamatune_torch.trial import Trial, TrialState

TOO_FEW = 3  # trials: fewer cannot tell luck from merit
COVERAGE = 0.9
NOISES = tuple(10 ** (-k / 2) for k in range(8, -1, -1))  # of the outcomes' variance: from 1e-4 to 1
PLAUSIBLE = 1.92  # half of the 95 % quantile of chi squared with one degree of freedom
TIGHT = 0.01  # standard deviation of the logarithm of a noise that is given


class Recommendation(NamedTuple):
    """The trial to use, and what is known of it.

    trial             the record, as :func:`recommend` returns it
    mean              its value on average over seeds; the posterior median, in the metric's unit
    low, high         a run on a fresh seed lies between them with a probability of 90 %; infinite while too few trials
                      have completed to tell
    runner_up         the next best one of other parameters; ``None`` if there is none
    default           the trial of the space's default, else of the first initial point; ``None`` if none was given or
                      has completed
    beats_runner_up   the probability that ``trial`` is better on average; ``None`` without one, or too few trials
    beats_default     likewise; ``None`` also if it is the same trial
    """

    trial: Trial
    mean: float
    low: float
    high: float
    runner_up: Trial | None = None
    default: Trial | None = None
    beats_runner_up: float | None = None
    beats_default: float | None = None

    def __str__(self) -> str:
        lines = [f"{self.mean:.6g} on average in trial {self.trial.number}"]
        if math.isfinite(self.low):
            lines.append(f"a run on a fresh seed lies between {self.low:.6g} and {self.high:.6g} ({COVERAGE:.0%})")
        if self.runner_up is not None and self.beats_runner_up is not None:
            lines.append(f"better than the runner-up, trial {self.runner_up.number}: {self.beats_runner_up:.0%}")
        if self.default is not None and self.beats_default is not None:
            lines.append(f"better than the default, trial {self.default.number}: {self.beats_default:.0%}")
        return "\n".join(lines)


@with_own_modes
def recommend(study: Study, settings: Settings | None = None) -> Trial:
    """The confirmed winner, else the feasible trial whose parameters have the best mean; the earliest among equals.

    If outcomes hold little noise this is ``study.best_trial``. It is never a trial with a worse value on record than
    the space's default: who leaves a default wants more than a model's word for it. Like ``suggest`` a pure function of
    the record.

    Raises:
        NoCompletedTrialError: nothing has completed yet.

    Example:
        >>> study = Study(SearchSpace({"x": Real(0, 1)}), trials=(Trial(0, {"x": 0.5}, state=COMPLETE, value=1.0),))
        >>> recommend(study).params
        {'x': 0.5}
    """
    best = study.best_trial
    if study.confirmed() or len(study.completed) < TOO_FEW or len(study.feasible) == 1:
        return best
    return ranked(study, settings or Settings())[0]


@with_own_modes
def ranked(study: Study, settings: Settings) -> list[Trial]:
    """The feasible trials by the surrogate's mean, the best first; the earliest of those with the same parameters.

    Those with a worse value on record than the default come last.
    """
    data = training_data(study, choose_device(settings.device, len(study.completed)), [])
    mean = posterior_mean(fit_surrogate(data), data.X).where(data.feasible, -torch.inf)
    order = mean.argsort(descending=True, stable=True)[: int(data.feasible.sum())]
    distinct: dict[str, Trial] = {}
    for trial in (study.completed[int(data.rows[i])] for i in order):
        distinct.setdefault(repr(trial.params), trial)
    default = study.default_value
    return sorted(distinct.values(), key=lambda t: default is not None and study.better(default, t.value or 0.0))


@with_own_modes
def explain(study: Study, settings: Settings | None = None) -> Recommendation:
    """The recommended trial, with the interval of its value and its probability to beat others.

    Raises:
        NoCompletedTrialError: nothing has completed yet.

    Example:
        >>> found = explain(tuner.study)
        >>> found.low < found.mean < found.high
        True
    """
    settings = settings or Settings()
    trial, default = recommend(study, settings), find_default(study)
    value = trial.value or 0.0
    if len(study.completed) < TOO_FEW:
        return Recommendation(trial, value, -math.inf, math.inf, default=default)
    data = training_data(study, choose_device(settings.device, len(study.completed)), [])
    others = [other for other in ranked(study, settings) if repr(other.params) != repr(trial.params)]
    runner_up = others[0] if others else None
    named = [trial, *(other for other in (runner_up, default) if other is not None)]
    X = Cube(study.space).encode_all([each.params for each in named]).to(data.X)
    beliefs = believe(data, X)
    half = NormalDist().inv_cdf((1 + COVERAGE) / 2) * beliefs.covariance[:, 0, 0].add(beliefs.noise).sqrt()
    middle, best = beliefs.mean[:, 0], int(beliefs.evidence.argmax())
    robust = torch.stack([middle[best], (middle - half).min(), (middle + half).max()])
    mean, *ends = in_the_metric(study, data, robust).tolist()
    confirmed = study.confirmed()
    if confirmed is not None and math.isfinite(confirmed.low):
        mean, ends = confirmed.mean, [confirmed.low, confirmed.high]

    def beats(other: Trial | None) -> float | None:
        same = other is None or repr(other.params) == repr(trial.params)
        return None if other is None or same else beliefs.beats(named.index(other))

    return Recommendation(trial, mean, min(ends), max(ends), runner_up, default, beats(runner_up), beats(default))


class Beliefs(NamedTuple):
    """The ``s`` plausible beliefs about the average outcomes at ``q`` points, each joint normal.

    evidence     s          the log likelihood of the outcomes, up to a constant
    mean         s x q
    covariance   s x q x q
    noise        s          the variance of a run's noise
    """

    evidence: Tensor
    mean: Tensor
    covariance: Tensor
    noise: Tensor

    def beats(self, j: int) -> float:
        """The least probability that the first point is better on average than point ``j``."""
        C = self.covariance
        sd = (C[:, 0, 0] + C[:, j, j] - 2 * C[:, 0, j]).clamp_min(1e-12).sqrt()
        return float(torch.special.ndtr((self.mean[:, 0] - self.mean[:, j]) / sd).min())


def believe(data: TrainingData, X: Tensor) -> Beliefs:
    """The plausible beliefs about the points ``X`` (``q x d``)."""
    found = []
    for noise in NOISES:
        prior = LogNormal(math.log(noise) + TIGHT**2, TIGHT, min(NOISES))
        gp = fit_gp(ProductKernel(data.features), data.X, data.Y, prior, known_noise=data.known_noise)
        with torch.no_grad():
            own = prior.log_density(gp.noise, torch.zeros_like(gp.noise))
            evidence = len(data.Y) * gp.log_posterior(gp.theta)[0] - own
            found.append((evidence.squeeze(), *gp.predictor().joint(X), gp.noise.squeeze()))
    beliefs = Beliefs(*(torch.stack(column) for column in zip(*found, strict=True)))
    plausible = beliefs.evidence >= beliefs.evidence.max() - PLAUSIBLE
    return Beliefs(*(column[plausible] for column in beliefs))


def find_default(study: Study) -> Trial | None:
    """The completed trial of the default, else of the first initial point; ``None`` if there is none."""
    own = study.default_trial
    if own is not None and own.state is TrialState.COMPLETE:
        return own
    for trial in study.completed if study.initial_points else []:
        point = study.initial_points[0]
        same = all(name in trial.params and repr(trial.params[name]) == repr(point[name]) for name in point)
        if same and study.trials[trial.first].origin == "initial":
            return trial
    return None
