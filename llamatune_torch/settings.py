"""The knobs of the engine, in one frozen record."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from llamatune_torch.errors import SettingsError

# From so many observations on, device="auto" takes a GPU. An estimate, not a measurement (``benchmarks/gpu.py`` takes
# it and names the number that its figures would give). A small GP is a long chain of small operations: on a GPU each
# costs some ten microseconds to launch, whatever its size, and L-BFGS waits for the last one before it can start
# the next; on a CPU such an operation on 50 x 50 numbers is over sooner. At several hundred observations the
# Cholesky factor and the n x n kernel matrices, which a GPU does in parallel, outweigh the launches.
CUDA_FROM_TRIALS = 500

AcquisitionName = Literal["logeqi", "logei", "ei", "logpi", "pi", "ucb", "qlogei", "qlognei"]


@dataclass(frozen=True)
class Settings:
    """What ``suggest`` may be told besides the study.

    Args:
        acquisition: "logeqi" (expected quantile improvement in log space, the default: expected improvement that is
            not misled by noise), "logei", "ei", "logpi", "pi", "ucb", or the Monte
            Carlo ones "qlogei" and "qlognei". With several points asked for or other trials running, the analytic ones
            are averaged over samples of what may come out of those.
        xi: how much a point must improve on the best, in standard deviations of the outcomes (EI, PI). Without it, the
            search polishes the first good choice it finds, instead of looking at the others.
        kappa: how many posterior standard deviations UCB adds to the mean.
        n_initial: trials before the surrogate takes over; ``None`` for the number of parameters plus one,
            between 4 and 10.
        seed: everything random follows from it.
        device: "auto" (the CPU; a GPU, if there is one, from ``CUDA_FROM_TRIALS`` observations on), "cpu", or a
            CUDA device such as "cuda:1".
        num_restarts: starting points of the gradient ascent on the acquisition.
        num_screened: quasi-random points among which those starting points are chosen.
        mc_samples: posterior samples of the Monte Carlo acquisitions, and of what may come out of running trials.

    Raises:
        SettingsError: a value out of its range.
    """

    acquisition: AcquisitionName = "logeqi"
    xi: float = 0.1
    kappa: float = 2.576
    n_initial: int | None = None
    seed: int = 0
    device: str = "auto"
    num_restarts: int = 8
    num_screened: int = 1024
    mc_samples: int = 64

    def __post_init__(self) -> None:
        names = get_args(AcquisitionName)
        if self.acquisition not in names:
            raise SettingsError(f"acquisition must be one of {list(names)}, but got {self.acquisition!r}")
        for name, low in (("xi", 0.0), ("kappa", 0.0)):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not (math.isfinite(value) and value >= low):
                raise SettingsError(f"{name} must be a finite number >= {low}, but got {value!r}")
        for name, low in (
            ("n_initial", 0), ("seed", 0), ("num_restarts", 1), ("num_screened", 1), ("mc_samples", 1)
        ):  # fmt: skip
            value = getattr(self, name)
            if name == "n_initial" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise SettingsError(f"{name} must be an integer >= {low}, but got {value!r}")
            if value >= 2**63:  # torch's generators take no more
                raise SettingsError(f"{name} must be < 2**63, but got {value!r}")
        self.torch_device(0)

    def torch_device(self, n: int) -> torch.device:
        """The device the engine computes on with ``n`` observations; only "auto" depends on them.

        Raises:
            SettingsError: torch does not know it, or it asks for a GPU that is not there.
        """
        if self.device == "auto":
            return torch.device("cuda" if n >= CUDA_FROM_TRIALS and torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
        except (RuntimeError, TypeError) as error:
            raise SettingsError(f"device must be 'auto' or a torch device, but got {self.device!r}") from error
        if device.type not in ("cpu", "cuda"):  # the GP needs float64, which mps has not
            raise SettingsError(f"device must be 'auto', 'cpu' or a CUDA device, but got {self.device!r}")
        count = torch.cuda.device_count()
        if device.type == "cuda" and (device.index or 0) >= count:
            raise SettingsError(f"device {self.device!r} is not there: torch sees {count} CUDA devices")
        return device

    def num_initial(self, dim: int) -> int:
        """How many trials of a space with ``dim`` parameters come before the surrogate."""
        return min(max(dim + 1, 4), 10) if self.n_initial is None else self.n_initial
