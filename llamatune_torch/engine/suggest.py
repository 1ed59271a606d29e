"""THE page: a study goes in, the next parameters come out.

    study -> data -> surrogate -> acquisition -> candidates -> parameters

A pure function: what it advises depends on the settings and the recorded trials alone, so a resumed study goes
on exactly as it would have. ``examples/minimal_bo.py`` does the same by hand.
"""

from __future__ import annotations

import torch

from llamatune_torch.engine.acquisition import Factor, make_acquisition, posterior_mean
from llamatune_torch.engine.candidates import maximize
from llamatune_torch.engine.crash import CrashModel
from llamatune_torch.engine.data import TrainingData, ignoring_default_device, training_data
from llamatune_torch.engine.initial import initial_suggestions
from llamatune_torch.engine.stagnation import exploration, is_stuck
from llamatune_torch.engine.surrogate import Surrogate, fit_gp
from llamatune_torch.seeds import derived_seed
from llamatune_torch.settings import Settings
from llamatune_torch.study import Study
from llamatune_torch.trial import Suggestion


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
    suggestions = initial_suggestions(study, settings, n)
    if len(suggestions) == n:
        return suggestions

    space = study.space
    data = training_data(study, settings.torch_device(len(study.completed)), [s.params for s in suggestions])
    surrogate = fit_surrogate(data)
    further = further_factors(data)
    incumbents = data.X[posterior_mean(surrogate, data.X).topk(min(4, len(data.X))).indices]
    while len(suggestions) < n:
        seed = derived_seed(settings.seed, len(study.trials), len(suggestions))
        if is_stuck(study, data, surrogate):
            acquisition = exploration(data, further)
        else:
            acquisition = make_acquisition(settings, surrogate, data.X, data.X_pending, further, seed)
        x = maximize(acquisition, space, incumbents, data.tried, settings.num_restarts, settings.num_screened, seed)
        suggestions.append(Suggestion(space.decode(x), "surrogate"))
        data = data._replace(X_pending=torch.cat([data.X_pending, x.unsqueeze(0)]))
    return suggestions


def fit_surrogate(data: TrainingData) -> Surrogate:
    """The surrogate of the completed trials."""
    return fit_gp(data.features, data.X, data.Y)


def further_factors(data: TrainingData) -> list[Factor]:
    """The factors besides the improvement: the chance that parameters work, once some have not."""
    if len(data.X_failed) == 0:
        return []
    X = torch.cat([data.X, data.X_failed])
    works = torch.arange(len(X), device=X.device) < len(data.X)
    return [CrashModel(data.features, X, works).factor()]
