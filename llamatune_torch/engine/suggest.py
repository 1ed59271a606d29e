"""THE page: a study goes in, the next parameters come out.

    study -> data -> surrogate, crash model, limits -> acquisition -> candidates -> parameters

A pure function: advice depends on the settings and the recorded trials alone, so a resumed study goes on exactly as it
would have. ``examples/minimal_bo.py`` does the same by hand.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llamatune_torch.engine.acquisition import Acquisition, Factor, make_acquisition, posterior_mean
from llamatune_torch.engine.candidates import maximize
from llamatune_torch.engine.crash import crash_factors
from llamatune_torch.engine.cube import Cube
from llamatune_torch.engine.data import TrainingData, choose_device, training_data, with_own_modes
from llamatune_torch.engine.feasibility import limit_factors
from llamatune_torch.engine.filling import fill_space, knows_nothing
from llamatune_torch.engine.hypervolume import fit_objectives, hypervolume_improvement, spread_front
from llamatune_torch.engine.initial import initial_suggestions
from llamatune_torch.engine.kernel import ProductKernel
from llamatune_torch.engine.stagnation import exploration, is_stuck
from llamatune_torch.engine.surrogate import Surrogate, fit_gp
from llamatune_torch.engine.transfer import Past, consult, is_heard, notes_of
from llamatune_torch.engine.why import say_why
from llamatune_torch.seeds import derived_seed
from llamatune_torch.settings import Settings
from llamatune_torch.study import Study
from llamatune_torch.trial import Suggestion

NUM_INCUMBENTS = 4  # the best observed points, around which the search for candidates also starts


@with_own_modes
def suggest(study: Study, settings: Settings | None = None, n: int = 1) -> list[Suggestion]:
    """The next ``n`` sets of parameters to evaluate, all different, none done or running.

    The default and the user's initial points come first. A scrambled Sobol sequence follows until ``n_initial`` trials
    are on record and one of them has completed; in a large space its centre comes before it. It goes on while outcomes
    say nothing about parameters (``filling.py``). From then on it is the maximiser of the acquisition under the
    surrogate. If the search is stuck, it is the point that is least known (``stagnation.py``). Of several objectives,
    the maximiser of the expected hypervolume (``hypervolume.py``) is next. While no trial keeps the constraints, it is
    the point that most probably does. A batch is chosen one by one, each point knowing those before it.

    Raises:
        SpaceExhaustedError: a finite space has fewer than ``n`` points left.

    Example:
        >>> study = Study(SearchSpace({"lr": Real(1e-5, 1e-3, prior="log-uniform")}))
        >>> suggest(study)[0].origin
        'sobol'
    """
    settings = settings or Settings()
    past = consult(study, settings)
    suggestions = initial_suggestions(study, settings, n, past)
    if len(suggestions) == n:
        return suggestions

    space, device = Cube(study.space), choose_device(settings.device, len(study.completed))
    data = training_data(study, device, [s.params for s in suggestions])
    limits = limit_factors(study, data)
    further = [*crash_factors(data, None if past is None else past.believed_failures(data)), *limits]
    objectives = fit_objectives(study, data)
    surrogates = [fit_surrogate(data, past)] if objectives is None else objectives.surrogates
    surrogate = surrogates[0]
    if not is_heard(past) and all(map(knows_nothing, surrogates)):
        return suggestions + fill_space(study, settings, data, further, n - len(suggestions), notes_of(past))
    if objectives is None:
        incumbents = find_incumbents(data, surrogate, limits)
    else:
        incumbents = spread_front(objectives, NUM_INCUMBENTS)
    nothing_to_improve_on = bool(limits) and not bool(data.feasible.any())
    while len(suggestions) < n:
        seed = derived_seed(settings.seed, len(study.trials), len(suggestions))
        if nothing_to_improve_on and len(data.X_pending) == 0:
            acquisition = Acquisition(further)
        elif nothing_to_improve_on or (objectives is None and is_stuck(study, data, surrogate)):
            acquisition = exploration(data, further)
        elif objectives is not None:
            gain = hypervolume_improvement(objectives, data.X_pending, settings.mc_samples, seed)
            acquisition = Acquisition([gain, *further])
        else:
            acquisition = make_acquisition(settings, surrogate, data.baseline, data.X_pending, further, seed)
        x = maximize(acquisition, space, incumbents, data.tried, settings.num_restarts, settings.num_screened, seed)
        why = {"why": say_why(study, data, surrogate, acquisition, x)}
        suggestions.append(Suggestion(space.decode(x), "surrogate", notes_of(past) | why))
        data = data.with_pending(x)
    return suggestions


def fit_surrogate(data: TrainingData, past: Past | None = None) -> Surrogate:
    """The surrogate of the completed trials; its prior mean is what past studies say, if they are listened to."""
    prior_mean = past.mean.to(data.X) if past is not None and past.off is None else None
    return fit_gp(ProductKernel(data.features), data.X, data.Y, prior_mean=prior_mean, known_noise=data.known_noise)


def find_incumbents(data: TrainingData, surrogate: Surrogate, limits: Sequence[Factor]) -> Tensor:
    """The best few observed points: feasible ones by the surrogate's mean, else those likeliest to keep the limits."""
    X = data.baseline
    if not bool(data.feasible.any()) and limits:
        with torch.no_grad():
            score = torch.stack([limit.log_value(X.unsqueeze(-2)) for limit in limits]).sum(dim=0)
    else:
        score = posterior_mean(surrogate, X)
    return X[score.topk(min(NUM_INCUMBENTS, len(X))).indices]
