"""A study as tensors: what the surrogate, the crash model and the candidate search are given."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from llamatune_torch.engine.cube import Cube
from llamatune_torch.engine.outcome import robust
from llamatune_torch.space import Params
from llamatune_torch.study import Study
from llamatune_torch.trial import Cause, Trial

# From so many observations on, device="auto" takes a GPU. An estimate, not a measurement: ``benchmarks/gpu.py``
# measures it and names the number. A small GP is a long chain of small operations. On a GPU each costs some ten
# microseconds to launch, whatever its size, and L-BFGS waits for the last one before it can start the next. On a CPU
# such an operation on 50 x 50 numbers is over sooner. At several hundred observations the Cholesky factor and the
# n x n kernel matrices, which a GPU computes in parallel, outweigh the launches.
CUDA_FROM_TRIALS = 500

P = ParamSpec("P")
T = TypeVar("T")


class TrainingData(NamedTuple):
    """A study as tensors on one device; ``n`` completed, ``f`` failed and ``m`` running trials.

    X          n x d   completed trials in the unit cube
    Y          n       their outcomes: larger is better, robust, standardised
    X_failed   f x d   trials whose failure says something about their parameters
    X_pending  m x d
    X_killed   k x d   trials that somebody killed: tried, and known no better for it
    """

    X: Tensor
    Y: Tensor
    X_failed: Tensor
    X_pending: Tensor
    X_killed: Tensor

    @property
    def tried(self) -> Tensor:
        """All points that are done or running, which are not suggested again."""
        return torch.cat([self.X, self.X_failed, self.X_pending, self.X_killed])


def training_data(study: Study, device: torch.device, also_pending: list[Params]) -> TrainingData:
    """The study as tensors. The sign of the outcomes is turned to "larger is better" here and nowhere else."""
    cube = Cube(study.space)
    sign = 1.0 if study.direction == "maximize" else -1.0
    Y = torch.tensor([sign * float(t.value or 0.0) for t in study.completed], dtype=torch.float64)

    def points(trials: list[Trial]) -> list[Params]:
        return [trial.params for trial in trials]

    return TrainingData(
        X=cube.encode_all(points(study.completed)).to(device),
        Y=robust(Y.to(device)),
        X_failed=cube.encode_all(points([t for t in study.failed if t.cause is not Cause.KILLED])).to(device),
        X_pending=cube.encode_all(points(study.pending) + also_pending).to(device),
        X_killed=cube.encode_all(points([t for t in study.failed if t.cause is Cause.KILLED])).to(device),
    )


def choose_device(device: str, n: int) -> torch.device:
    """The device to compute on with ``n`` observations; only "auto" depends on them.

    Args:
        device: ``Settings.device``, which is checked there.
        n: the number of completed trials.
    """
    if device == "auto":
        return torch.device("cuda" if n >= CUDA_FROM_TRIALS and torch.cuda.is_available() else "cpu")
    return torch.device(device)


def ignoring_default_device(function: Callable[P, T]) -> Callable[P, T]:
    """Tensors that are made without a device are on the CPU, whatever ``torch.set_default_device`` was told.

    Some of torch's and BoTorch's code makes such tensors; those of the engine follow the data.
    """

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        if torch.get_default_device().type == "cpu":
            return function(*args, **kwargs)  # the context below would double the time of every small operation
        with torch.device("cpu"):
            return function(*args, **kwargs)

    return wrapped
