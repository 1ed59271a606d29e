"""The end of a search before its budget: when a further trial would gain less than the final choice is uncertain by.

The trial with the best posterior mean, ``m*``, is the one to use in the end. A further trial can be expected to gain

    gain = max over x of  E[(f(x) - m*)+] = max of  s(x) h((m(x) - m*) / s(x)),     h(u) = phi(u) + u Phi(u),

the expected improvement (Jones et al., 1998, eq. 15). No choice is more certain than by the noise of an evaluation, of
the standard deviation ``sqrt(noise)``. The search ends once

    gain < FRACTION * sqrt(noise).

This is the rule of Makarova et al. (2022, "Automatic Termination for Hyperparameter Optimization", section 4): to end
once what is left to gain is lost in the statistical error of the choice. There are two changes. They bound what is left
by confidence bounds. With several parameters, the largest one stays above the noise for hundreds of trials: it ended no
search of the benchmark within 60. And they take the error from a cross-validation, which a fine-tune has not: the noise
that the surrogate has learnt takes its place.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from llamatune_torch.engine.acquisition import make_acquisition, posterior_mean
from llamatune_torch.engine.candidates import maximize
from llamatune_torch.engine.crash import crash_factors
from llamatune_torch.engine.cube import Cube
from llamatune_torch.engine.data import choose_device, signed_values, training_data, with_own_modes
from llamatune_torch.engine.feasibility import limit_factors
from llamatune_torch.engine.filling import knows_nothing
from llamatune_torch.engine.outcome import steepness
from llamatune_torch.engine.suggest import find_incumbents, fit_surrogate
from llamatune_torch.seeds import derived_seed
from llamatune_torch.settings import Settings
from llamatune_torch.study import Study
from llamatune_torch.trial import TrialState

FRACTION = 0.5  # of the noise's standard deviation; benchmarks/README.md has what other fractions save and cost


class Verdict(NamedTuple):
    """The two sides of the rule, in the unit of the metric."""

    gain: float
    threshold: float

    @property
    def ends(self) -> bool:
        """True if the search is to end."""
        return self.gain < self.threshold

    def __str__(self) -> str:
        sign = "below" if self.ends else "not below"
        return f"a further trial is expected to gain {self.gain:.2g}, {sign} {self.threshold:.2g}"


@with_own_modes
def assess(study: Study, settings: Settings) -> Verdict | None:
    """The verdict about a study; ``None`` while it is too early for one. A pure function of the record.

    It is too early before ``settings.min_evals`` trials have ended, while no trial keeps the limits, and while outcomes
    say nothing about parameters (``filling.py``). Trials that run count for nothing.

    Raises:
        SpaceExhaustedError: a finite space has no point left.
    """
    ended = [t for t in study.in_state(TrialState.COMPLETE, TrialState.FAILED) if t.origin != "added"]
    if len(ended) < settings.least_evals(len(study.space.varied_columns)) or len(study.feasible) < 2:
        return None
    data = training_data(study, choose_device(settings.device, len(study.completed)), [])
    surrogate = fit_surrogate(data)
    if knows_nothing(surrogate):
        return None
    limits = limit_factors(study, data)
    plain = replace(settings, acquisition="logei", xi=0.0)
    further = [*crash_factors(data), *limits]
    seed = derived_seed(settings.seed, len(study.trials), 0)
    acquisition = make_acquisition(plain, surrogate, data.baseline, data.X[:0], further, seed)
    incumbents = find_incumbents(data, surrogate, limits)
    x = maximize(
        acquisition, Cube(study.space), incumbents, data.tried, settings.num_restarts, settings.num_screened, seed
    )
    log_gain = acquisition.parts(x[None, None])["improvement"]
    best = posterior_mean(surrogate, data.baseline).max()
    unit = float(steepness(best, signed_values(study).to(data.Y), data.Y, data.rows))
    return Verdict(unit * float(log_gain.exp()), FRACTION * unit * float(surrogate.noise.sqrt()))
