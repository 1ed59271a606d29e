"""Fantasies: the surrogate imagines the outcomes of trials that are still running.

Each of ``s`` fantasies is the surrogate given one joint sample of ``f`` at the running points. Averaged over them, the
acquisition of a single point is that of a batch whose other points are set (Snoek et al., 2012, arXiv:1206.2944). Close
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
        X_pending: points of running trials, ``m x d``.
        base_samples: standard normal, ``s x m``; zeros imagine the outcomes that the surrogate expects.
    """

    _is_ensemble = True  # BoTorch's word for: average over the last batch dimension
    num_outputs = 1

    def __init__(self, surrogate: Surrogate, X_pending: Tensor, base_samples: Tensor) -> None:
        super().__init__()
        given = surrogate.predictor()
        prior, k = given.prior, given.prior.covariance
        P = prior.features(X_pending)
        cross = k(P, given.inputs)  # m x n
        among = k.matrix_and_slope(P)[0]
        among.diagonal().add_(JITTER)
        whitened = cross @ given.inverse_root.mT
        root = psd_safe_cholesky(among - whitened @ whitened.mT)
        samples = prior.constant + cross @ given.weights + root @ base_samples.mT  # m x s, less the prior mean
        K = torch.cat([torch.cat([surrogate.outcome_covariance(), cross.mT], dim=1), torch.cat([cross, among], dim=1)])
        observed = surrogate.train_targets.unsqueeze(-1).expand(-1, len(base_samples))
        self.predictor = condition(prior, torch.cat([given.inputs, P]), K, torch.cat([observed, samples]))
        self.noise = surrogate.noise
        #: The imagined outcomes of the running trials, ``s x m``.
        self.samples: Tensor = prior.add_mean(samples, X_pending).mT

    @property
    def best(self) -> Tensor:
        """The best outcome of a running trial in each fantasy; ``s x 1``."""
        return self.samples.amax(dim=-1, keepdim=True)

    @property
    def batch_shape(self) -> torch.Size:
        return self.samples.shape[:1]

    def posterior(self, X: Tensor, *args: object, **kwargs: object) -> GaussianPosterior:
        """The ``s`` posteriors at each of ``b`` single points (``b x 1 x d``); ``b x s x 1``."""
        mean, variance = self.predictor.moments(X.squeeze(-2))
        variance = variance.unsqueeze(-1).expand_as(mean)
        return GaussianPosterior(mean.unsqueeze(-1), variance[..., None, None])
