"""What all tests share: no network, one thread, no deadlines, and a device to run on."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: a download fails at once, not after a minute

import warnings

import hypothesis
import pytest
import torch

with warnings.catch_warnings():
    # linear_operator (below gpytorch) decorates with torch.jit.script, which torch 2.13 deprecates.
    warnings.filterwarnings("ignore", message=r"`torch\.jit\.script`", category=DeprecationWarning)
    import gpytorch  # noqa: F401  (imported here once, so that the exemption covers nothing else)

# Tens of points: more threads only wait for each other, and the machine is shared.
torch.set_num_threads(1)

# No deadline: the first example pays for imports. derandomize: the same examples every time, so that no run fails
# by chance; `--hypothesis-profile=explore` looks for new ones.
hypothesis.settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=1000)
hypothesis.settings.load_profile("repeatable")

NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: torch.cuda.is_available() is False")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_CUDA])])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where the engine computes; the tests that use it run once for each kind of device there is."""
    return torch.device(request.param)
