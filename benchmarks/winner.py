"""Is the winner one? The value that is reported for it, next to what runs on fresh seeds then give.

    OMP_NUM_THREADS=1 python benchmarks/winner.py
    OMP_NUM_THREADS=1 python benchmarks/winner.py --problems crossing_noisy --studies 2 --evals 12

Simulated searches on noisy problems whose true values are known. After each, what is reported of its winner is compared
with a run on a fresh seed: does it lie within the interval of 90 %? For ``recommendation()``, and for the best value on
record with an interval of the same width around it, as people read it.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from scores import markdown

from llamatune_torch import LlamaTune, problems
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
    """One study: whether a fresh run lay within the interval, and how much better than the truth the report was.

    inside, raw_inside     of the recommended trial, and of the best value on record
    flattery, raw_flattery reported less true value, in standard deviations of the noise, as a gain
    regret, raw_regret     of the true value
    extra                  evaluations that confirmed the winner
    """

    inside: bool
    raw_inside: bool
    flattery: float
    raw_flattery: float
    regret: float
    raw_regret: float
    extra: int


def study_one(problem: Problem, evals: int, seed: int, **knobs: Any) -> Report:
    generator = np.random.default_rng(seed)
    cheap = {"num_restarts": 2, "num_screened": 128, "n_initial": 12, "progress": False}
    tuner = LlamaTune(problem.space, None, evals, direction=problem.direction, seed=seed, **cheap, **knobs)
    while tuner.may_ask():
        trial = tuner.ask()
        tuner.tell(trial, problem.evaluate(trial.params, generator))
    found = tuner.recommendation()
    raw, half = tuner.study.by_value()[0], (found.high - found.low) / 2
    sign = 1.0 if problem.direction == "maximize" else -1.0
    fresh, raw_fresh = (problem.evaluate(t.params, generator) for t in (found.trial, raw))
    return Report(
        found.low <= fresh <= found.high,
        abs((raw.value or 0.0) - raw_fresh) <= half,
        sign * (found.mean - problem.true_value(found.trial.params)) / problem.noise,
        sign * ((raw.value or 0.0) - problem.true_value(raw.params)) / problem.noise,
        problem.regret(found.trial.params),
        problem.regret(raw.params),
        0,
    )


def cells(reports: list[Report]) -> list[str]:
    def mean(name: str) -> float:
        return statistics.mean(float(getattr(report, name)) for report in reports)

    shares = [f"{mean(name):.0%}" for name in ("inside", "raw_inside")]
    gains = [f"{mean(name):+.2f}" for name in ("flattery", "raw_flattery")]
    return [*shares, *gains, *(f"{mean(name):.3g}" for name in ("regret", "raw_regret", "extra"))]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--evals", type=int, default=24)
    parser.add_argument("--studies", type=int, default=50, help="of each problem")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    titles = [
        "problem",
        "fresh run inside",
        "raw best",
        "flattery, noise sd",
        "raw best",
        "regret",
        "raw best",
        "extra",
    ]
    rows, records = [titles], dict[str, list[Report]]()
    for name in options.problems:
        records[name] = [study_one(PROBLEMS[name], options.evals, seed) for seed in range(options.studies)]
        rows.append([name, *cells(records[name])])
    rows.append(["all", *cells([report for reports in records.values() for report in reports])])
    print(markdown(rows))
    runs = {name: [asdict(report) for report in reports] for name, reports in records.items()}
    print(json.dumps({"runs": runs, "machine": platform.machine(), "torch": torch.__version__}))


if __name__ == "__main__":
    main()
