"""The confirmation of the winner: the best few of a search are trained again on fresh seeds, until one is better.

    candidates   the ``settings.confirm`` best by the surrogate's mean, when the search is over
    round        each candidate that is left trains once, all on the same fresh seed
    after it     one that has failed or broken a limit is out.
                 The posterior of all runs tells how likely each is best.
                 One that is so with ``settings.confidence`` remains alone, else those go that hardly are.
    end          when one alone has trained once more than all others, or the evaluations for it are used up

This is successive elimination (Even-Dar et al., 2006) by posterior probability. Seeds are shared, since candidates
that meet the same order of data and the same initial weights differ by less than their runs do. The surrogate takes
runs for independent, so that it rather waits too long. One that is best only with ``(1 - confidence) / k`` goes: so the
best one of ``k`` goes with at most ``1 - confidence``, by the posterior.

A pure function of the record: rounds are found again by their seeds, and each is judged by what was known after it.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from itertools import count

import torch
from linear_operator.utils.cholesky import psd_safe_cholesky

from llamatune_torch.confirmed import runs_of, searched_trials
from llamatune_torch.decisions import ROUNDING, Decision, Finish, Start, Wait
from llamatune_torch.engine.cube import Cube
from llamatune_torch.engine.data import choose_device, training_data, with_own_modes
from llamatune_torch.engine.prediction import JITTER
from llamatune_torch.engine.qmc import normal_samples
from llamatune_torch.engine.recommend import ranked
from llamatune_torch.engine.suggest import fit_surrogate
from llamatune_torch.seeds import derived_seed
from llamatune_torch.settings import Settings
from llamatune_torch.study import Study
from llamatune_torch.trial import Trial, TrialState

NUM_SAMPLES = 4096  # of the joint posterior
FRESH = 0xC0F1  # tells seeds of rounds from all other seeds of a study
LEAST_ROUNDS = 2  # without a second seed, the spread is unknown


def searched(study: Study) -> Study:
    """The study as it was when its search ended: up to the last trial that is no confirmation."""
    return replace(study, trials=searched_trials(study.trials))


def affordable(study: Study, max_cost: float | None) -> float:
    """The number of full runs that ``max_cost`` still pays for, if they cost what the completed ones did on average."""
    costs = [trial.cost for trial in study.completed if trial.cost]
    if max_cost is None or not costs:
        return math.inf
    return max(0.0, (max_cost - study.cost) / statistics.fmean(costs) - len(study.pending))


def next_confirmation(study: Study, settings: Settings, left: float) -> Decision:
    """Decides what comes after the search.

    Args:
        study: the record.
        settings: ``confirm``, ``confirm_evals`` and ``confidence``.
        left: the number of full runs that may still start.
    """
    before = searched(study)
    if before.pending:
        return Wait("the last trials of the search are running")
    if not before.feasible:
        return Finish("no trial can be confirmed: none has completed and keeps the limits")
    runs, old = runs_of(study.trials), runs_of(before.trials)
    alive = ranked(before, settings)[: settings.confirm]
    for number in count():
        seed = confirmation_seed(settings.seed, number)
        at = {repr(trial.params): runs.get(repr(trial.params), {}).get(seed) for trial in alive}
        missing = [trial for trial in alive if at[repr(trial.params)] is None]
        if missing:
            new = sum(seed not in old.get(repr(trial.params), {}) for trial in alive)
            later = study.trials[len(before.trials) :]
            used = sum(trial.seed != seed and trial.state is not TrialState.LOST for trial in later)
            if used + new > settings.num_reserved or left < len(missing) - ROUNDING:
                return Finish(
                    f"{len(alive)} candidates are left after {number} fresh seeds, but no evaluations for them"
                )
            return Start(missing[0].params, "confirm", seed=seed)
        if any(trial is not None and trial.state is TrialState.RUNNING for trial in at.values()):
            return Wait(f"candidates are running on fresh seed {number + 1}")
        worked = {params for params, trial in at.items() if trial is not None and study.is_feasible(trial)}
        alive = [trial for trial in alive if repr(trial.params) in worked]
        if not alive:
            return Finish("no candidate has worked on all fresh seeds")
        if len(alive) == 1 and number + 1 >= LEAST_ROUNDS:
            return Finish(f"trial {alive[0].number} is confirmed on {number + 1} fresh seeds")
        seeds = {confirmation_seed(settings.seed, i) for i in range(number + 1)}
        known = [t for t in study.trials if t.number < len(before.trials) or t.seed in seeds]
        chances = chances_to_be_best(replace(study, trials=tuple(known)), alive, settings)
        alive = _survivors(alive, chances, settings)
    raise AssertionError("rounds end")


def confirmation_seed(seed: int, number: int) -> int:
    """The seed on which all candidates of a study of this ``seed`` train in a round."""
    return derived_seed(seed, FRESH, number, 1)


@with_own_modes
def chances_to_be_best(study: Study, candidates: list[Trial], settings: Settings) -> list[float]:
    """The posterior probabilities that each of the candidates is the best of them on average over seeds."""
    data = training_data(study, choose_device(settings.device, len(study.completed)), [])
    X = Cube(study.space).encode_all([trial.params for trial in candidates]).to(data.X)
    with torch.no_grad():
        mean, covariance = fit_surrogate(data).predictor().joint(X)
        covariance.diagonal().add_(JITTER)
        samples = normal_samples(NUM_SAMPLES, len(X), settings.seed).to(mean)
        best = (mean + samples @ psd_safe_cholesky(covariance).mT).argmax(dim=-1)
        shares = torch.bincount(best, minlength=len(X)) / NUM_SAMPLES
    return [float(share) for share in shares]


def _survivors(alive: list[Trial], chances: list[float], settings: Settings) -> list[Trial]:
    best = max(chances)
    if best >= settings.confidence:
        return [alive[chances.index(best)]]
    least = (1 - settings.confidence) / settings.confirm
    return [trial for trial, chance in zip(alive, chances, strict=True) if chance >= least]
