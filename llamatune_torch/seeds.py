"""Seeds that follow from other seeds."""

from __future__ import annotations

import numpy as np


def derived_seed(*keys: int) -> int:
    """A seed of its own for each purpose; well mixed, the same everywhere.

    Zeros at the end do not count: ``derived_seed(1) == derived_seed(1, 0)``. So give keys of one purpose one length.
    """
    return int(np.random.SeedSequence(keys).generate_state(1)[0])
