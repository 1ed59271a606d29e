"""What several tests of the engine start from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from strategies import halton, plain_space

from llamatune_torch.engine.features import Features
from llamatune_torch.engine.kernel import ProductKernel
from llamatune_torch.engine.outcome import standardize
from llamatune_torch.engine.surrogate import Surrogate


@pytest.fixture(scope="module")
def gp() -> Surrogate:
    """A surrogate of the points ``halton(8, 2)``, hyperparameters set by hand: no fit, so it costs nothing."""
    X = halton(8, 2)
    model = Surrogate(ProductKernel(Features(plain_space(2))), X, standardize((4 * X[:, 0]).sin() - X[:, 1]))
    kernel: Any = model.covar_module
    kernel.lengthscale = torch.tensor([0.4, 0.8])
    model.likelihood.noise = 0.01
    model.eval()
    return model
