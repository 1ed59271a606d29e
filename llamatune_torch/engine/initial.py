"""The initial design: the user's own points, then a scrambled Sobol sequence."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from llamatune_torch.engine.candidates import MAX_ENUMERATED, is_new
from llamatune_torch.engine.cube import Cube
from llamatune_torch.engine.qmc import sobol
from llamatune_torch.errors import SpaceExhaustedError
from llamatune_torch.settings import Settings
from llamatune_torch.space import Params
from llamatune_torch.study import Study
from llamatune_torch.trial import Suggestion, TrialState


def initial_suggestions(study: Study, settings: Settings, n: int) -> list[Suggestion]:
    """Up to ``n`` suggestions that need no surrogate; fewer as soon as it can take over."""
    tried = [trial for trial in study.trials if trial.state is not TrialState.LOST]
    # repr tells 1, 1.0 and True apart, which == does not.
    known = {repr(trial.params) for trial in tried}
    fresh = {repr(p): Suggestion(p, "initial") for p in study.initial_points if repr(p) not in known}
    suggestions = list(fresh.values())[:n]
    wanted = n - len(suggestions)
    if study.completed:
        num_tried = len({trial.first for trial in tried})  # a retry is no other point
        wanted = min(wanted, settings.num_initial(len(study.space.varied_columns)) - num_tried - len(suggestions))
    if wanted <= 0:
        return suggestions
    taken = Cube(study.space).encode_all([trial.params for trial in tried] + [s.params for s in suggestions])
    return suggestions + [Suggestion(p, "sobol") for p in next_sobol_points(study, settings, taken, wanted)]


def next_sobol_points(
    study: Study, settings: Settings, taken: Tensor, n: int, preferred: Callable[[Tensor], Tensor] | None = None
) -> list[Params]:
    """The next ``n`` points of the study's Sobol sequence that are not ``taken`` (``m x d``).

    If ``preferred`` marks some of the next points, these come first.
    """
    space = Cube(study.space)
    start = sum(trial.origin == "sobol" for trial in study.trials)
    pool = sobol(space, n + 256, settings.seed, start)
    if space.size is not None and space.size <= MAX_ENUMERATED:
        pool = torch.cat([pool, space.grid()])  # what a short sequence may miss
    if preferred is not None:
        first = preferred(pool)
        pool = torch.cat([pool[first], pool[~first]])
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
