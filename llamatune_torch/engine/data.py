"""A study as tensors: the input of the surrogate, the crash model and the candidate search."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from llamatune_torch.engine.cube import Cube
from llamatune_torch.engine.features import Features
from llamatune_torch.engine.outcome import restore, robust, standardize, steepness
from llamatune_torch.engine.thinning import keep, without
from llamatune_torch.space import Params
from llamatune_torch.study import Study
from llamatune_torch.trial import Cause, Trial

# From so many observations on, device="auto" takes a GPU. Measured on an H200 (``benchmarks/gpu.py``): an ask is level
# there with 300 and 400 observations, 1.6 times quicker with 500, 2.6 times with 1,000. A small GP is a long chain of
# small operations. On a GPU each costs some ten microseconds to launch, whatever its size, and L-BFGS waits for the
# last one before it can start the next. On a CPU such an operation on 50 x 50 numbers is over sooner. At several
# hundred observations the Cholesky factor and the n x n kernel matrices, which a GPU computes in parallel, outweigh
# that.
CUDA_FROM_TRIALS = 500

TINY_SLOPE = 1e-12  # where values that differ by rounding have ranks
MOST_NOISE = 1e2  # standard deviations of the outcomes

P = ParamSpec("P")
T = TypeVar("T")


class TrainingData(NamedTuple):
    """A study as tensors on one device; ``n`` completed, ``m_f`` failed and ``m`` running trials.

    X          n x d     completed trials in the unit cube
    Y          n         their outcomes: larger is better, robust, standardised
    X_failed   m_f x d   trials whose failure says something about their parameters
    X_pending  m x d     running trials, and points already chosen in this batch
    X_unused   k x d     tried, but no model is given them: those that somebody killed, since their parameters are not
                         to blame, and those above the number that ``thinning.py`` keeps
    rows       n         the places of ``X`` among the study's completed trials
    feasible   n         which of them keep all constraints
    is_error   m_f       the failed ones that ended by another exception than of memory, divergence or time
    features             what the kernels see of such points
    known_noise   n      the variances of ``Y`` that trials have told, besides the noise; ``None`` if none has
    """

    X: Tensor
    Y: Tensor
    X_failed: Tensor
    X_pending: Tensor
    X_unused: Tensor
    rows: Tensor
    feasible: Tensor
    is_error: Tensor
    features: Features
    known_noise: Tensor | None = None

    @property
    def tried(self) -> Tensor:
        """All points that are done or running, which are not suggested again."""
        return torch.cat([self.X, self.X_failed, self.X_pending, self.X_unused])

    @property
    def baseline(self) -> Tensor:
        """The points to improve on: those of feasible trials, or of all while there is none."""
        return self.X[self.feasible] if bool(self.feasible.any()) else self.X

    def with_pending(self, x: Tensor) -> TrainingData:
        """The same with one more running trial at ``x``, shape ``d``."""
        return self._replace(X_pending=torch.cat([self.X_pending, x.unsqueeze(0)]))


def training_data(study: Study, device: torch.device, also_pending: list[Params]) -> TrainingData:
    """The study as tensors.

    Args:
        study: with one completed trial or more.
        device: of the tensors, which are float64.
        also_pending: parameters that count as running, besides those of running trials.
    """
    cube = Cube(study.space)
    Y = signed_values(study)

    def points(trials: list[Trial]) -> Tensor:
        return cube.encode_all([trial.params for trial in trials]).to(device)

    values = Y.to(device)
    X, Y = points(study.completed), robust(values)
    failed = [trial for trial in study.failed if trial.cause is not Cause.KILLED]
    X_failed = points(failed)
    is_error = torch.tensor([trial.cause is Cause.ERROR for trial in failed], dtype=torch.bool, device=device)
    unused = [points([t for t in study.failed if t.cause is Cause.KILLED])]
    rows, failed_rows = keep(X, Y, X_failed)
    if len(rows) + len(failed_rows) < len(X) + len(X_failed):
        unused += [without(X, rows), without(X_failed, failed_rows)]
        X, Y, X_failed = X[rows], standardize(Y[rows]), X_failed[failed_rows]
        is_error = is_error[failed_rows.to(device)]
    return TrainingData(
        X=X,
        Y=Y,
        X_failed=X_failed,
        X_pending=torch.cat([points(study.pending), cube.encode_all(also_pending).to(device)]),
        X_unused=torch.cat(unused),
        rows=rows,
        feasible=torch.tensor([study.is_feasible(trial) for trial in study.completed], device=device)[rows.to(device)],
        is_error=is_error,
        features=Features(study.space),
        known_noise=_known_noise(study, values, Y, rows),
    )


def _known_noise(study: Study, values: Tensor, Y: Tensor, rows: Tensor) -> Tensor | None:
    """The variances that trials have told, in the unit of ``Y``: by the slope of what made the values robust."""
    if all(not trial.std for trial in study.completed) or bool((Y == Y[0]).all()):
        return None
    std = torch.tensor([trial.std or 0.0 for trial in study.completed], dtype=Y.dtype, device=Y.device)[
        rows.to(Y.device)
    ]
    return (std / steepness(Y, values, Y, rows).clamp_min(TINY_SLOPE)).clamp_max(MOST_NOISE).square()


def signed_values(study: Study) -> Tensor:
    """The values of completed trials. Their sign is turned to "larger is better" here and nowhere else."""
    sign = 1.0 if study.direction == "maximize" else -1.0
    return torch.tensor([sign * float(t.value or 0.0) for t in study.completed], dtype=torch.float64)


def in_the_metric(study: Study, data: TrainingData, values: Tensor) -> Tensor:
    """Robust values (any shape, in the unit of ``data.Y``) in the unit and the direction of the metric."""
    sign = 1.0 if study.direction == "maximize" else -1.0
    Y = signed_values(study).to(data.Y)
    if bool((data.Y == data.Y[0]).all()):
        return sign * Y[0].expand_as(values)
    return sign * restore(values, Y, data.Y, data.rows)


def signed_objectives(study: Study) -> Tensor:
    """All objectives of completed trials (``n x m``): larger is better, nan where one was not measured."""
    scores = [study.scores_of(trial) for trial in study.completed]
    return torch.tensor(scores, dtype=torch.float64).reshape(-1, len(study.objectives))


def choose_device(device: str, n: int) -> torch.device:
    """The device to compute on with ``n`` observations; only "auto" depends on them.

    Args:
        device: ``Settings.device``, which is checked there.
        n: the number of completed trials.
    """
    if device == "auto":
        return torch.device("cuda" if n >= CUDA_FROM_TRIALS and torch.cuda.is_available() else "cpu")
    return torch.device(device)


def with_own_modes(function: Callable[P, T]) -> Callable[P, T]:
    """Decorates ``function``: gradients are on, inference mode is off, and tensors without a device are on the CPU.

    An evaluation may leave torch otherwise, and a caller may do so on purpose. The search for candidates needs
    gradients. Some of torch's and BoTorch's code makes tensors without a device; those of the engine follow the data.
    Afterwards all is as before.
    """

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with torch.inference_mode(False), torch.enable_grad():
            if torch.get_default_device().type == "cpu":
                return function(*args, **kwargs)  # the context below would double the time of every small operation
            with torch.device("cpu"):
                return function(*args, **kwargs)

    return wrapped
