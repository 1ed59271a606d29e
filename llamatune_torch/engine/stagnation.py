"""Escape from a plateau: a search that is stuck takes one exploring step.

On a plateau the outcomes differ by next to nothing. After the robust transform, these tiny differences are all the
surrogate sees. Now and then it explains them by a length scale so short that nothing far away can matter. Expected
improvement then polishes the best point of the plateau for ever. The fit cannot find out, since it only sees points
that were chosen on its own advice. With estimated hyperparameters expected improvement need not converge at all (Bull,
2011, JMLR 12:2879; Benassi et al., 2011, on deceptive first points).

Bull's cure is to explore every now and then, regardless of the surrogate. So do Gutmann (2001, in cycles) and De Ath et
al. (2021, at random). That costs a search that does well a good part of its evaluations (benchmarks/TRIED.md). Here
only a stuck search explores, one that shows all three signs: a length scale at the end of its range, the last few
trials all near the best one, and none of them better beyond the noise. Its next point is the one about which the trials
say least, by the length scales that are most probable before any outcome. The points after it are chosen as always.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from botorch.acquisition import AcquisitionFunction
from torch import Tensor

from llamatune_torch.engine.acquisition import Acquisition, Factor
from llamatune_torch.engine.data import TrainingData
from llamatune_torch.engine.kernel import MIN_LENGTH_SCALE, ProductKernel
from llamatune_torch.engine.prediction import Prediction
from llamatune_torch.engine.surrogate import Surrogate
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
    """Tells whether the search is stuck: the last ``PATIENCE`` finished trials show all three signs.

    The surrogate chose all of them and believes in a ``SHORT`` length scale. All of them are near the best of all. None
    is better than all earlier ones by more than the noise. A point elsewhere that is running, or already chosen in this
    batch, is exploration enough.

    Args:
        study: the record; its order says which trials were the last.
        data: ``study`` as tensors; points already chosen in this batch are in ``X_pending``.
        surrogate: fitted to ``data``.
    """
    if not (surrogate.covariance().numeric_scales <= SHORT).any():
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
    best = data.X[data.Y.argmax()].unsqueeze(0)
    return bool((prior_correlation(surrogate.kernel, best, X) >= NEAR).all())


def exploration(data: TrainingData, further: Sequence[Factor]) -> Acquisition:
    """The acquisition of an exploring step: the least known point, times ``further`` factors.

    Done, failed and running trials teach the same; killed ones teach nothing.
    """
    X = torch.cat([data.X, data.X_failed, data.X_pending])
    # Before a fit, hyperparameters are at the modes of their priors; and a variance does not depend on outcomes.
    unfitted = Surrogate(ProductKernel(data.features), X, torch.zeros_like(X[:, 0]))
    return Acquisition([Factor("exploration", LogStandardDeviation(unfitted.prediction())), *further])


def prior_correlation(kernel: ProductKernel, A: Tensor, B: Tensor) -> Tensor:
    """The correlation of outcomes at the rows of ``A`` (``m x d``) and ``B`` (``n x d``), before any is observed."""
    return kernel.at(A.new_tensor(kernel.modes))(kernel.features(A), kernel.features(B))
