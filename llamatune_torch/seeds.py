"""Seeds that follow from other seeds."""

from __future__ import annotations

import numpy as np


def derived_seed(*keys: int) -> int:
    """A seed of its own for each purpose; well mixed, the same everywhere."""
    return int(np.random.SeedSequence(keys).generate_state(1)[0])
