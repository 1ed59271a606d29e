"""The initial design: the default, the user's own points, then a scrambled Sobol sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from llamatune_torch.engine.candidates import MAX_ENUMERATED, is_new
from llamatune_torch.engine.cube import Cube, to_numpy
from llamatune_torch.engine.estimates import likely_kept
from llamatune_torch.engine.qmc import MAX_DRAWN, allowed_sobol, quasi_random, sobol
from llamatune_torch.engine.transfer import (
    CONTRAST,
    CONTRASTS,
    FIRST_GUESS,
    PORTFOLIO,
    Past,
    first_guess,
    notes_of,
    num_chosen,
    was_expected,
)
from llamatune_torch.errors import SpaceExhaustedError
from llamatune_torch.partial import completions, is_complete
from llamatune_torch.settings import Settings
from llamatune_torch.space import Params
from llamatune_torch.study import Study
from llamatune_torch.trial import Suggestion, Trial, TrialState

# Points of the Sobol sequence, besides its own, among which a partial initial point finds one to complete it.
NUM_COMPLETIONS = 4096
# With so many parameters that vary, and without a default, the centre of the space takes the place of the sequence's
# first point. A uniformly random optimum is at a squared distance of d / 12 from the centre, and of d / 6 from a random
# point. In few dimensions a point of the sequence may be near all the same; in many, none is. So 15 is where a space is
# taken for large: problems of 12 parameters and fewer are searched as before, those of 30 to 60 were better off for it
# (benchmarks/README.md, "Many parameters").
CENTRED_FROM = 15


def initial_suggestions(study: Study, settings: Settings, n: int, past: Past | None = None) -> list[Suggestion]:
    """Up to ``n`` suggestions that need no surrogate; fewer as soon as it can take over.

    Points of the sequence that are likely to break a limit, by its estimates, come after all others. Where ``past``
    studies are listened to, theirs come in the place of the design.
    """
    tried = [trial for trial in study.trials if trial.state is not TrialState.LOST]
    default = untried_default(study)
    suggestions = [] if default is None else [Suggestion(default, "default")]
    suggestions += [Suggestion(params, "initial") for params in untried_points(study, settings, tried)]
    suggestions = suggestions[:n]
    wanted = n - len(suggestions)
    if past is not None and past.off is None:
        return suggestions + _after_past(study, settings, past, suggestions, wanted)
    if study.completed:
        # A retry is no other point, and what past studies have chosen is no design, once they are not listened to.
        num_tried = len({trial.first for trial in tried if not was_expected(trial)})
        wanted = min(wanted, settings.num_initial(len(study.space.varied_columns)) - num_tried - len(suggestions))
    if wanted <= 0:
        return suggestions
    taken = Cube(study.space).encode_all([trial.params for trial in tried] + [s.params for s in suggestions])
    points = next_sobol_points(study, settings, taken, wanted, likely_kept(study))
    return suggestions + [Suggestion(params, "sobol", notes_of(past)) for params in points]


def _after_past(study: Study, settings: Settings, past: Past, before: list[Suggestion], n: int) -> list[Suggestion]:
    """Up to ``n`` suggestions: first guesses of past studies, and the points of the sequence that may contradict."""
    cube, suggestions, k = Cube(study.space), list[Suggestion](), num_chosen(study)
    tried = [trial.params for trial in study.trials if trial.state is not TrialState.LOST]
    taken, kept = cube.encode_all(tried + [suggestion.params for suggestion in before]), likely_kept(study)
    portfolio = settings.transfer == "portfolio"
    guesses, contrasts = (range(1, PORTFOLIO + 1), ()) if portfolio else ((1,), CONTRASTS)
    for place in range(k + 1, k + n + 1):
        if study.completed and place not in (*guesses, *contrasts):
            break
        guess = None if place in contrasts else first_guess(past, taken, kept)
        if guess is not None:
            suggestion = Suggestion(cube.decode(guess), "surrogate", {"past": FIRST_GUESS})
        else:
            point = next_sobol_points(study, settings, taken, 1, kept)[0]
            suggestion = Suggestion(point, "sobol", {"past": CONTRAST})
        suggestions.append(suggestion)
        taken = torch.cat([taken, cube.encode(suggestion.params).unsqueeze(0)])
    return suggestions


def untried_default(study: Study) -> Params | None:
    """The space's default while no trial has it that may come to its end, else ``None``."""
    default, over = study.space.default, (TrialState.LOST, TrialState.STOPPED)
    if default is None or any(repr(t.params) == repr(default) for t in study.trials if t.state not in over):
        return None
    return default


def untried_points(study: Study, settings: Settings, tried: Sequence[Trial]) -> list[Params]:
    """The initial points that are not among the trials ``tried``, in their order, each once and complete.

    The default is not among them. The ``j``-th partial point takes what it leaves out from the ``j``-th point of the
    study's Sobol sequence. If that will not do, it takes it from the first of some later ones, which are its own. A
    trial that an initial point has started stands for the first partial point that it agrees with. A partial point that
    can become nothing new is left out.
    """
    partial = places_of_partial(study)
    whole = [point for i, point in enumerate(study.initial_points) if i not in partial]
    # repr tells 1, 1.0 and True apart, which == does not.
    default = [] if study.space.default is None else [study.space.default]
    known = {repr(params) for params in [trial.params for trial in tried] + default}
    started = [t.params for t in tried if partial and study.trials[t.first].origin == "initial"]
    started = [params for params in started if repr(params) not in map(repr, whole)]
    fresh: dict[str, Params] = {}
    for i, point in enumerate(study.initial_points):
        if i not in partial:
            if repr(point) not in known:
                fresh.setdefault(repr(point), point)
        elif (same := next((params for params in started if _agree(params, point)), None)) is not None:
            started.remove(same)
        else:
            taken = [trial.params for trial in tried] + default + whole + list(fresh.values())
            completed = _completed(study, settings, point, partial.index(i), len(partial), taken)
            fresh.update({repr(params): params for params in completed})
    return list(fresh.values())


def places_of_partial(study: Study) -> list[int]:
    """The places, among the initial points, of those that leave parameters out."""
    return [i for i, point in enumerate(study.initial_points) if not is_complete(study.space, point)]


def next_sobol_points(
    study: Study, settings: Settings, taken: Tensor, n: int, preferred: Callable[[Tensor], Tensor] | None = None
) -> list[Params]:
    """The next ``n`` points of the study's Sobol sequence that are not ``taken`` (``m x d``).

    If ``preferred`` marks some of the next points, these come first. The first point of a large space's sequence is
    its centre, if rules allow it (``CENTRED_FROM``).
    """
    space = Cube(study.space)
    start = len(places_of_partial(study)) + sum(trial.origin == "sobol" for trial in study.trials)
    if study.space.rules:  # each place of the sequence may have been passed over, so all are looked at again
        start = 0
        pool = allowed_sobol(space, n + len(taken), settings.seed, patience=MAX_DRAWN)
    else:
        pool = sobol(space, n + 256, settings.seed, start)
    if start == 0 and len(study.space.varied_columns) >= CENTRED_FROM and study.space.default is None:
        centre = space.centre().unsqueeze(0)
        pool[:1] = torch.where(space.allows(centre), centre, pool[:1])
    if space.size is not None and space.size <= MAX_ENUMERATED:
        grid = space.grid()  # what a short sequence may miss
        pool = torch.cat([pool, grid[space.allows(grid)]])
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


def _agree(params: Params, point: Params) -> bool:
    return all(name in params and repr(params[name]) == repr(value) for name, value in point.items())


def _completed(
    study: Study, settings: Settings, point: Params, j: int, num_partial: int, taken: Sequence[Params]
) -> list[Params]:
    """The parameters that the ``j``-th of the partial points becomes; none if all that it can become is ``taken``."""
    cube, avoid = Cube(study.space), Cube(study.space).encode_all(taken)
    ranges = ((1, j), (NUM_COMPLETIONS, (j + 1) * NUM_COMPLETIONS))
    U = torch.cat([quasi_random(cube.dim, n, settings.seed, start) for n, start in ranges])
    if cube.size is not None and cube.size <= MAX_ENUMERATED:
        U = torch.cat([U, cube.grid()])  # what a short sequence may miss
    X = torch.from_numpy(completions(study.space, point, to_numpy(U)))
    X = X[is_new(cube, X, avoid)]
    return [cube.decode(x) for x in X[cube.allows(X)][:1]]
