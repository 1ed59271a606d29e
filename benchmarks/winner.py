"""Is the winner one? The value that is reported for it, next to what runs on fresh seeds then give.

    OMP_NUM_THREADS=1 python benchmarks/winner.py
    OMP_NUM_THREADS=1 python benchmarks/winner.py --problems crossing_noisy --studies 2 --evals 12

Simulated searches on noisy problems whose true values are known, then ``confirm=3``. What is reported of the winner is
compared with a run on a fresh seed: does it lie within the interval of 90 %? So is what ``recommendation()`` says
before, in the first studies, and the best value on record. Around that is an interval of the width that the
noise has, were it known.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from scores import markdown

from llamatune_torch import BudgetSpentError, LlamaTune, Trial, problems
from llamatune_torch.engine.confirm import searched
from llamatune_torch.engine.recommend import explain
from llamatune_torch.problems import Problem

NOISE = {"fine_tuning": 0.003, "branin": 2.0}
CURVES = {c.name: c for c in problems.NOISY_CURVES}
PROBLEMS = {
    "branin": replace(problems.branin, noise=NOISE["branin"]),
    "fine_tuning": replace(problems.fine_tuning, noise=NOISE["fine_tuning"]),
    **{
        name: Problem(name, CURVES[name].space, "minimize", 1.0, CURVES[name].true_value, CURVES[name].noise)
        for name in ("fine_tune_4_noisy", "crossing_noisy")
    },
}


@dataclass(frozen=True)
class Report:
    """One study.

    confirmed, before, raw   whether a fresh run lay within the interval: of the confirmed winner, of the recommended
                             trial before the confirmation (``None`` if that was not asked), of the best value on record
    flattery, raw_flattery   how much better the report was than the truth, in standard deviations of the noise
    regret, raw_regret       of the true value, in the same unit
    extra                    runs that confirmed the winner
    """

    confirmed: bool
    before: bool | None
    raw: bool
    flattery: float
    raw_flattery: float
    regret: float
    raw_regret: float
    extra: int


def study_one(problem: Problem, evals: int, seed: int, asks_before: bool) -> Report:
    generator = np.random.default_rng(seed)
    cheap: dict[str, Any] = {"num_restarts": 2, "num_screened": 128, "n_initial": 12, "progress": False, "confirm": 3}
    tuner = LlamaTune(problem.space, None, evals + 9, direction=problem.direction, seed=seed, **cheap)
    with suppress(BudgetSpentError):
        while tuner.may_ask():
            trial = tuner.ask()
            tuner.tell(trial, problem.evaluate(trial.params, generator))
    study, noise = tuner.study, problem.noise
    found, before = study.confirmed(), searched(study)
    assert found is not None
    raw, sign = before.best_trial, 1.0 if problem.direction == "maximize" else -1.0
    guess = explain(before, tuner.settings) if asks_before else None

    def runs_within(trial: Trial, low: float, high: float) -> bool:
        return low <= problem.evaluate(trial.params, generator) <= high

    def flattery(value: float, trial: Trial) -> float:
        return sign * (value - problem.true_value(trial.params)) / noise

    half, value = 1.645 * noise, before.best_value
    return Report(
        runs_within(found.trial, found.low, found.high),
        None if guess is None else runs_within(guess.trial, guess.low, guess.high),
        runs_within(raw, value - half, value + half),
        flattery(found.mean, found.trial),
        flattery(value, raw),
        problem.regret(found.trial.params) / noise,
        problem.regret(raw.params) / noise,
        len(study.trials) - len(before.trials),
    )


def cells(reports: list[Report]) -> list[str]:
    def mean(name: str) -> float:
        values = [float(value) for report in reports if (value := getattr(report, name)) is not None]
        return statistics.mean(values) if values else math.nan

    shares = [f"{mean(name):.0%}" for name in ("confirmed", "before", "raw")]
    return [*shares, *(f"{mean(name):+.2f}" for name in ("flattery", "raw_flattery", "regret", "raw_regret", "extra"))]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--evals", type=int, default=20, help="before the confirmation")
    parser.add_argument("--studies", type=int, default=50, help="of each problem")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--before", type=int, default=10, help="studies of each that are asked before it too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    insides = ["confirmed: inside", "before: inside", "best value: inside"]
    rows = [["problem", *insides, "flattery", "of best value", "regret", "of best value", "runs to confirm"]]
    records: dict[str, list[Report]] = {}
    for name in options.problems:
        records[name] = [
            study_one(PROBLEMS[name], options.evals, seed, seed < options.before)
            for seed in range(options.first, options.first + options.studies)
        ]
        rows.append([name, *cells(records[name])])
    rows.append(["all", *cells([report for reports in records.values() for report in reports])])
    print(markdown(rows))
    runs = {name: [asdict(report) for report in reports] for name, reports in records.items()}
    print(json.dumps({"runs": runs, "machine": platform.machine(), "torch": torch.__version__}))


if __name__ == "__main__":
    main()
