"""What a study tells about itself."""

from __future__ import annotations

from llamatune_torch.insight.records import Insight, Progress, Step
from llamatune_torch.settings import Settings
from llamatune_torch.study import Study


def explain(study: Study, settings: Settings | None = None) -> Insight:
    """Reads the progress of a study; a stand-in until the surrogate is asked."""
    best, steps = float("nan"), list[Step]()
    for trial in study.completed:
        value = trial.value or 0.0
        if study.is_feasible(trial) and (best != best or study.better(value, best)):
            best = value
        steps.append(Step(trial.number, value, best, None))
    winner = study.best_trial.number if study.feasible else None
    failures = {reason: (count, 0.0) for reason, count in study.failures_by_reason().items()}
    progress = Progress(tuple(steps), winner, None, None, None, None, {}, study.saved, failures)
    reason = "nothing is computed yet"
    names = ("importance", "near", "interactions", "effects", "effects_near", "surfaces", "trust")
    return Insight(study, progress, missing=dict.fromkeys(names, reason))
