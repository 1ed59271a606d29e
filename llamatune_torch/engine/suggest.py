"""THE page: a study goes in, the next parameters come out.

    study -> data -> surrogate -> acquisition -> candidates -> parameters

A pure function: what it advises depends on the settings and the recorded trials alone, so a resumed study goes
on exactly as it would have. ``examples/minimal_bo.py`` does the same by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import NamedTuple, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from llamatune_torch.engine.acquisition import make_acquisition, posterior_mean
from llamatune_torch.engine.candidates import is_new, maximize, sobol
from llamatune_torch.engine.feasibility import Feasibility
from llamatune_torch.engine.features import features_of
from llamatune_torch.engine.outcome import robust
from llamatune_torch.engine.stagnation import exploration, is_stuck
from llamatune_torch.engine.surrogate import Surrogate, fit_gp
from llamatune_torch.errors import SpaceExhaustedError
from llamatune_torch.settings import Settings
from llamatune_torch.space import Params, SearchSpace
from llamatune_torch.study import Origin, Study, Trial, TrialState

P = ParamSpec("P")
T = TypeVar("T")


class Suggestion(NamedTuple):
    """Parameters to train next, and who chose them."""

    params: Params
    origin: Origin


class TrainingData(NamedTuple):
    """A study as tensors on one device; ``n`` completed, ``f`` failed and ``m`` running trials.

    X          n x d   completed trials in the unit cube
    Y          n       their outcomes: larger is better, robust, standardised
    X_failed   f x d
    X_pending  m x d
    """

    X: Tensor
    Y: Tensor
    X_failed: Tensor
    X_pending: Tensor


def ignoring_default_device(function: Callable[P, T]) -> Callable[P, T]:
    """Tensors that are made without a device are on the CPU, whatever ``torch.set_default_device`` was told.

    The space, and some of torch's own code, make such; those of the engine follow the data.
    """

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        if torch.get_default_device().type == "cpu":
            return function(*args, **kwargs)  # the context below would double the time of every small operation
        with torch.device("cpu"):
            return function(*args, **kwargs)

    return wrapped


@ignoring_default_device
def suggest(study: Study, settings: Settings | None = None, n: int = 1) -> list[Suggestion]:
    """The next ``n`` sets of parameters to evaluate, all different, none done or running.

    The user's initial points come first, then a scrambled Sobol sequence until ``n_initial`` trials are on
    record and one of them has completed; from then on the maximiser of the acquisition under the surrogate, or
    what is least known where that has led nowhere of late (``stagnation.py``).
    A batch is chosen one by one, each point knowing those before it.

    Raises:
        SpaceExhaustedError: a finite space has fewer than ``n`` points left.

    Example:
        >>> study = Study(SearchSpace({"lr": Real(1e-5, 1e-3, prior="log-uniform")}))
        >>> suggest(study)[0].origin
        'sobol'
    """
    settings = settings or Settings()
    suggestions = opening(study, settings, n)
    if len(suggestions) == n:
        return suggestions

    space = study.space
    data = training_data(study, settings.torch_device(len(study.completed)), [s.params for s in suggestions])
    surrogate = fit(data, space)
    feasibility = feasibility_of(data, space)
    incumbents = data.X[posterior_mean(surrogate, data.X).topk(min(4, len(data.X))).indices]
    while len(suggestions) < n:
        seed = derived_seed(settings.seed, len(study.trials), len(suggestions))
        if is_stuck(study, data, surrogate):
            acquisition = exploration(space, data, feasibility)
        else:
            acquisition = make_acquisition(settings, surrogate, data.X, data.X_pending, feasibility, seed)
        avoid = torch.cat([data.X, data.X_failed, data.X_pending])
        x = maximize(acquisition, space, incumbents, avoid, settings.num_restarts, settings.num_screened, seed)
        suggestions.append(Suggestion(space.decode(x), "surrogate"))
        data = data._replace(X_pending=torch.cat([data.X_pending, x.unsqueeze(0)]))
    return suggestions


def opening(study: Study, settings: Settings, n: int) -> list[Suggestion]:
    """Up to ``n`` suggestions that need no surrogate; fewer as soon as it can take over."""
    tried = [trial for trial in study.trials if trial.state is not TrialState.LOST]
    # repr tells 1, 1.0 and True apart, which == does not.
    known = {repr(trial.params) for trial in tried}
    fresh = {repr(p): Suggestion(p, "initial") for p in study.initial_points if repr(p) not in known}
    suggestions = list(fresh.values())[:n]
    wanted = n - len(suggestions)
    if study.completed:
        wanted = min(wanted, settings.num_initial(study.space.dim) - len(tried) - len(suggestions))
    if wanted <= 0:
        return suggestions
    taken = encode(study.space, [trial.params for trial in tried] + [s.params for s in suggestions])
    return suggestions + [Suggestion(p, "sobol") for p in unexplored(study, settings, taken, wanted)]


def unexplored(study: Study, settings: Settings, taken: Tensor, n: int) -> list[Params]:
    """The next ``n`` points of the study's Sobol sequence that are not ``taken`` (``m x d``)."""
    space = study.space
    start = sum(trial.origin == "sobol" for trial in study.trials)
    pool = sobol(space, n + 256, settings.seed, start)
    if space.size is not None and space.size <= len(pool):
        pool = torch.cat([pool, space.grid()])  # what a short sequence may miss
    chosen: list[Params] = []
    for x in pool:
        if len(chosen) < n and is_new(space, x.unsqueeze(0), taken).all():
            chosen.append(space.decode(x))
            taken = torch.cat([taken, x.unsqueeze(0)])
    if len(chosen) < n:
        raise SpaceExhaustedError(
            f"all {space.size} points of the space are done or running; nothing new can be suggested"
        )
    return chosen


def training_data(study: Study, device: torch.device, also_pending: list[Params]) -> TrainingData:
    """The study as tensors. The sign of the outcomes is turned to "larger is better" here and nowhere else."""
    space = study.space
    sign = 1.0 if study.direction == "maximize" else -1.0
    Y = torch.tensor([sign * float(t.value or 0.0) for t in study.completed], dtype=torch.float64)

    def points(trials: list[Trial]) -> list[Params]:
        return [trial.params for trial in trials]

    return TrainingData(
        X=encode(space, points(study.completed)).to(device),
        Y=robust(Y.to(device)),
        X_failed=encode(space, points(study.failed)).to(device),
        X_pending=encode(space, points(study.pending) + also_pending).to(device),
    )


def encode(space: SearchSpace, rows: list[Params]) -> Tensor:
    """Points of the unit cube, ``n x d``, also for ``n = 0``."""
    return space.encode_all(rows) if rows else torch.empty(0, space.dim, dtype=torch.float64)


def fit(data: TrainingData, space: SearchSpace) -> Surrogate:
    """The surrogate of the completed trials."""
    return fit_gp(data.X, data.Y, space.categorical_columns, features_of(space))


def feasibility_of(data: TrainingData, space: SearchSpace) -> Feasibility | None:
    """The crash model, once something has crashed."""
    if len(data.X_failed) == 0:
        return None
    X = torch.cat([data.X, data.X_failed])
    works = torch.arange(len(X), device=X.device) < len(data.X)
    return Feasibility(X, works, space.categorical_columns, features_of(space))


def derived_seed(*keys: int) -> int:
    """A seed of its own for each purpose; well mixed, the same everywhere."""
    return int(np.random.SeedSequence(keys).generate_state(1)[0])
