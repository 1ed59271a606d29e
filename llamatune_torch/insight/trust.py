"""Trust in the surrogate: its predictions of trials that it was not shown."""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from torch import Tensor

from llamatune_torch.engine.data import TrainingData
from llamatune_torch.engine.surrogate import Surrogate
from llamatune_torch.insight.effects import Scale
from llamatune_torch.insight.records import Prediction, Trust
from llamatune_torch.study import Study

HALF, MOST = 0.5, 0.9  # coverages of the intervals that are checked
RANKS = ((0.8, "good"), (0.5, "usable"), (0.2, "rough"))  # least rank correlations, and the word for them


@torch.no_grad()
def judge(study: Study, data: TrainingData, surrogate: Surrogate, to_metric: Scale) -> Trust:
    """Leaves out each trial in turn, and says how well the others predict it.

    Args:
        study: the record.
        data: of the study, with three trials or more.
        surrogate: fitted to ``data``.
        to_metric: from robust outcomes to the metric.
    """
    Y, (mean, sd) = data.Y, leave_one_out(data, surrogate)
    z = (Y - mean).abs() / sd
    inside = [float((z <= NormalDist().inv_cdf((1 + share) / 2)).double().mean()) for share in (HALF, MOST)]
    correlation = rank_correlation(mean, Y)
    n = len(Y)
    others = (Y.sum() - Y) / (n - 1)
    spread = ((Y.square().sum() - Y.square()) / (n - 1) - others.square()).clamp_min(1e-12).sqrt()
    gain = float((_log_normal(Y, mean, sd) - _log_normal(Y, others, spread)).mean())
    reach = NormalDist().inv_cdf((1 + MOST) / 2) * sd
    shown = torch.stack([to_metric(values) for values in (mean, mean - reach, mean + reach)], dim=-1).tolist()
    trials = [study.completed[int(row)] for row in data.rows]
    predictions = tuple(
        Prediction(trial.number, trial.value or 0.0, middle, min(ends), max(ends))
        for trial, (middle, *ends) in zip(trials, shown, strict=True)
    )
    noise = float(surrogate.noise)
    verdict = _verdict(inside[1], correlation, gain)
    return Trust(inside[0], inside[1], correlation, gain, min(noise, 1.0), predictions, verdict)


def leave_one_out(data: TrainingData, surrogate: Surrogate) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each outcome given all others, noise included; ``n`` each.

    With ``a = K^-1 (Y - c)`` they are ``y_i - a_i / (K^-1)_ii`` and ``(K^-1)_ii^(-1/2)`` (Rasmussen & Williams, 2006,
    eq. 5.12). The hyperparameters are those of all trials.
    """
    given = surrogate.predictor()
    precision = given.inverse_root.square().sum(dim=0)
    return data.Y - given.weights[:, 0] / precision, precision.rsqrt()


def _log_normal(Y: Tensor, mean: Tensor, sd: Tensor) -> Tensor:
    density: Tensor = -((Y - mean) / sd).square() / 2 - sd.log() - math.log(2 * math.pi) / 2
    return density


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation of two vectors; equal values share their mean rank. 0 where one does not vary."""
    ranks = torch.stack([_ranks(a), _ranks(b)])
    centred = ranks - ranks.mean(dim=-1, keepdim=True)
    size = centred.square().sum(dim=-1).prod().sqrt()
    return float(centred.prod(dim=0).sum() / size) if size > 0 else 0.0


def _ranks(values: Tensor) -> Tensor:
    _, places, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0)
    ranks: Tensor = (last - (counts - 1) / 2)[places].to(torch.float64)
    return ranks


def _verdict(inside: float, correlation: float, gain: float) -> str:
    word = next((word for least, word in RANKS if correlation >= least), "not to be relied on")
    better = "" if gain > 0 else "; a constant would predict as well"
    return (
        f"the surrogate ranks unseen runs with {correlation:.2f}: {word}. Its 90 % intervals hold {inside:.0%}{better}"
    )
