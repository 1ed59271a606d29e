"""When the search goes round in circles, it looks where nobody has been.

On a plateau the outcomes differ by next to nothing. Made robust and standardised, the little they differ is all that
the surrogate sees; now and then it explains it by a length scale so short that nothing far away can matter, and then
expected improvement polishes the best point of the plateau for ever. The fit cannot find out, since it only ever sees
what was asked for on its own advice: with estimated hyperparameters expected improvement need not converge at all
(Bull, 2011, JMLR 12:2879; Benassi et al., 2011, on deceptive first points).

Bull's cure is to explore every now and then, whatever the surrogate says; so do Gutmann (2001, in cycles) and De Ath
et al. (2021, at random). That costs a search that does well a good part of its evaluations (benchmarks/README.md), so
here only one does that shows all the signs: a length scale at the end of its range, and the last few trials all
near the best one, and none better beyond the noise. Then the next point is the one about which the trials so far say
least, by the length scales that were believed in before any outcome. The points after it are chosen as always.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from botorch.acquisition import AcquisitionFunction
from torch import Tensor

from llamatune_torch.engine.acquisition import Acquisition, Factor
from llamatune_torch.engine.data import TrainingData
from llamatune_torch.engine.features import Features
from llamatune_torch.engine.prediction import Prediction
from llamatune_torch.engine.surrogate import MIN_LENGTH_SCALE, Surrogate
from llamatune_torch.study import Study
from llamatune_torch.trial import Cause, TrialState

PATIENCE = 5  # trials without progress
SHORT = 2 * MIN_LENGTH_SCALE  # a length scale that leaves nearly all of its column unknown
NEAR = 0.5  # correlation, before anything is learnt: columns that differ by 0.2 (root mean square), all choices equal


class LogStandardDeviation(AcquisitionFunction):
    """The logarithm of the standard deviation: how little is known about ``b x 1 x d`` points; ``b`` values."""

    model: Prediction

    def forward(self, X: Tensor) -> Tensor:
        value: Tensor = self.model.posterior(X).variance.flatten().log() / 2
        return value


def is_stuck(study: Study, data: TrainingData, surrogate: Surrogate) -> bool:
    """Whether the last ``PATIENCE`` finished trials, all chosen by a surrogate, have led nowhere, and one knows why.

    That is, none of them is better than all earlier ones by more than the noise, all of them are near the best of all,
    and the surrogate believes in a ``SHORT`` length scale. A point that is running, or chosen before this one in a
    batch, and not near the best, is exploration enough.

    Args:
        study: the record; its order says which trials were the last.
        data: the same as tensors, with what was chosen so far among ``X_pending``.
        surrogate: fitted to ``data``.
    """
    if not (surrogate.kernel().numeric_scales <= SHORT).any():
        return False
    ended = study.in_state(TrialState.COMPLETE, TrialState.FAILED)
    finished = [trial for trial in ended if trial.cause is not Cause.KILLED]
    recent = finished[-PATIENCE:]
    if len(recent) < PATIENCE or any(trial.origin != "surrogate" for trial in recent):
        return False
    completed = sum(trial.state is TrialState.COMPLETE for trial in recent)
    before = len(data.Y) - completed
    if before == 0 or (completed and data.Y[before:].max() > data.Y[:before].max() + surrogate.noise.sqrt().item()):
        return False
    failed = len(data.X_failed) - (PATIENCE - completed)
    X = torch.cat([data.X[before:], data.X_failed[failed:], data.X_pending])
    return bool((prior_correlation(data.features, data.X[data.Y.argmax()].unsqueeze(0), X) >= NEAR).all())


def exploration(data: TrainingData, further: Sequence[Factor]) -> Acquisition:
    """What going to a point teaches, times the chance that it works: done, failed and running trials teach the same."""
    X = torch.cat([data.X, data.X_failed, data.X_pending])
    return Acquisition([Factor("exploration", LogStandardDeviation(prior(data.features, X).prediction())), *further])


def prior_correlation(features: Features, A: Tensor, B: Tensor) -> Tensor:
    """The correlation of outcomes at the rows of ``A`` (``m x d``) and ``B`` (``n x d``), before any is seen."""
    gp = prior(features, torch.cat([A, B]))
    return gp.kernel()(gp.inputs[: len(A)], gp.inputs[len(A) :])


def prior(features: Features, X: Tensor) -> Surrogate:
    """The surrogate that has seen where trials were, but no outcome: its hyperparameters are their priors' modes."""
    gp = Surrogate(features, X, torch.zeros_like(X[:, 0]))
    gp.eval()
    return gp
