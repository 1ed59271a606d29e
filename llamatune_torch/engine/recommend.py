"""The trial to use in the end: best on average, since the best value on record may only have been lucky.

Among many runs at the flat top of a noisy landscape, the one that came out best has the kindest noise. The surrogate
has seen all of them: its mean estimates the average outcome of each.
"""

from __future__ import annotations

import torch

from llamatune_torch.engine.acquisition import posterior_mean
from llamatune_torch.engine.data import choose_device, training_data, with_own_modes
from llamatune_torch.engine.suggest import fit_surrogate
from llamatune_torch.settings import Settings
from llamatune_torch.study import Study
from llamatune_torch.trial import Trial


@with_own_modes
def recommend(study: Study, settings: Settings | None = None) -> Trial:
    """The feasible trial for whose parameters the surrogate's mean is best; the earliest among equals.

    If outcomes hold little noise this is ``study.best_trial``. Like ``suggest`` a pure function of the record.

    Raises:
        NoCompletedTrialError: nothing has completed yet.

    Example:
        >>> study = Study(SearchSpace({"x": Real(0, 1)}), trials=(Trial(0, {"x": 0.5}, state=COMPLETE, value=1.0),))
        >>> recommend(study).params
        {'x': 0.5}
    """
    best = study.best_trial
    completed = study.completed
    if len(completed) < 3 or len(study.feasible) == 1:  # too few to tell luck from merit
        return best
    settings = settings or Settings()
    data = training_data(study, choose_device(settings.device, len(completed)), [])
    mean = posterior_mean(fit_surrogate(data), data.X).where(data.feasible, -torch.inf)
    return completed[int(data.rows[int(mean.argmax())])]
