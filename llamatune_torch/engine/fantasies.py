"""Trials that are still running: the surrogate imagines what may come out of them.

Each of ``s`` fantasies is the surrogate given one joint sample of ``f`` at the running points. Averaged over them, the
acquisition of a single point is that of a batch whose other points are set (Snoek et al., 2012, arXiv:1206.2944): close
to a running trial there is little left to learn in any of them. The samples are drawn once, not for each candidate, so
that a batch costs little more than its points one by one.
"""

from __future__ import annotations

import torch
from botorch.models.model import Model
from linear_operator.utils.cholesky import psd_safe_cholesky
from torch import Tensor

from llamatune_torch.engine.prediction import JITTER, GaussianPosterior, condition
from llamatune_torch.engine.surrogate import Surrogate


class Fantasies(Model):
    """``s`` surrogates as one ensemble, over which BoTorch's acquisitions average.

    Args:
        surrogate: fitted.
        X_pending: where trials are running, ``m x d``.
        base_samples: standard normal, ``s x m``; zeros imagine what the surrogate expects.
    """

    _is_ensemble = True  # BoTorch's word for: average over the last batch dimension
    num_outputs = 1

    def __init__(self, surrogate: Surrogate, X_pending: Tensor, base_samples: Tensor) -> None:
        super().__init__()
        given, kernel = surrogate.predictor(), surrogate.kernel()
        self.features, self.noise = surrogate.features, surrogate.noise
        P = self.features(X_pending)
        cross = kernel(P, given.inputs)  # m x n
        among = kernel.matrix_and_slope(P)[0]
        among.diagonal().add_(JITTER)
        whitened = cross @ given.inverse_root.mT
        root = psd_safe_cholesky(among - whitened @ whitened.mT)
        #: What may come out of the running trials, ``s x m``.
        self.samples: Tensor = (given.mean + cross @ given.weights).mT + base_samples @ root.mT
        K = surrogate.with_noise(kernel.matrix_and_slope(given.inputs)[0])
        K = torch.cat([torch.cat([K, cross.mT], dim=1), torch.cat([cross, among], dim=1)])
        seen = surrogate.train_targets.unsqueeze(-1).expand(-1, len(self.samples))
        Y = torch.cat([seen, self.samples.mT])
        self.predictor = condition(kernel, torch.cat([given.inputs, P]), given.mean, K, Y)

    @property
    def best(self) -> Tensor:
        """The best that comes out of a running trial in each fantasy; ``s x 1``."""
        return self.samples.amax(dim=-1, keepdim=True)

    @property
    def batch_shape(self) -> torch.Size:
        return self.samples.shape[:1]

    def posterior(self, X: Tensor, *args: object, **kwargs: object) -> GaussianPosterior:
        """For each of ``b`` single points (``b x 1 x d``), the ``s`` posteriors; ``b x s x 1``."""
        X = X.squeeze(-2)
        mean, variance = self.predictor.moments(self.features(X))
        variance = variance.unsqueeze(-1).expand_as(mean)
        return GaussianPosterior(mean.unsqueeze(-1), variance[..., None, None])
