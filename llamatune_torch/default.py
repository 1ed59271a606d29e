"""The default, which is what a user would do without a search: its trial, and what the search has gained on it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from llamatune_torch.constraints import Constraint
from llamatune_torch.space import Params
from llamatune_torch.trial import Direction, Trial, TrialState


def find_trial(trials: Sequence[Trial], default: Params | None) -> Trial | None:
    """The first completed trial with the parameters of the default, else the newest; ``None`` if there is none."""
    if default is None:
        return None
    own = [trial for trial in trials if repr(trial.params) == repr(default)]  # which tells 1, 1.0 and True apart
    return next((trial for trial in own if trial.state is TrialState.COMPLETE), own[-1] if own else None)


def describe_default(
    default: Params | None, trial: Trial | None, metric: str, constraints: Sequence[Constraint] = ()
) -> str:
    """Says in a line what came of the default, where there is nothing to compare.

    Args:
        default: the space's.
        trial: that of the default.
        metric: the name of its value.
        constraints: the study's limits.
    """
    if trial is None:
        return "no default was compared" if default is None else "the default has not been tried"
    if trial.state is not TrialState.COMPLETE:
        return f"{_name(trial)}: {trial.state}" + (f", {trial.reason}" if trial.reason else "")
    broken = ", ".join(str(limit) for limit in constraints if not limit.is_kept(trial.outcomes))
    return f"{_name(trial)} breaks {broken}, with {metric} {trial.value:.6g}"


def compare(
    trial: Trial, best: Trial, best_value: float, again: Sequence[float], metric: str, direction: Direction
) -> str:
    """Says in a line how much better the best is.

    Args:
        trial: that of the default; it has completed.
        best: that of the study.
        best_value: its value; of a confirmed winner, a mean over fresh seeds.
        again: the values of the default on such seeds, if it was among the candidates.
        metric: the name of the value.
        direction: of the study.
    """
    if repr(best.params) == repr(trial.params):
        return f"{_name(trial)} is the best, with {metric} {best_value:.6g}"
    value = statistics.fmean(again) if again else trial.value or 0.0
    gain = best_value - value if direction == "maximize" else value - best_value
    if gain == 0:
        return f"no better than {_name(trial)}, with {metric} {best_value:.6g}"
    if gain < 0 and not again:
        return f"worse than the one run of {_name(trial)} by {-gain:.6g}, which may have been lucky"
    return f"{'worse' if gain < 0 else 'better'} than {_name(trial)} by {abs(gain):.6g}"


def _name(trial: Trial) -> str:
    return f"the default (trial {trial.number})"
