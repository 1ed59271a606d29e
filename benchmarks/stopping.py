"""How many evaluations does ``stopping="auto"`` save, and what does it cost?

    OMP_NUM_THREADS=1 python benchmarks/stopping.py
    OMP_NUM_THREADS=1 python benchmarks/stopping.py --problems branin --seeds 1 --evals 24

Each search runs to its whole budget. After each trial it is asked whether it would have ended there, by the rule of
``engine/stopping.py`` with several fractions of the noise. So all ends are of the same search, and a difference is not
one of luck. Regrets are of the true values of the trials that ``recommend`` names; medians over seeds.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from scores import markdown

from llamatune_torch import LlamaTune, problems
from llamatune_torch.engine import stopping
from llamatune_torch.engine.recommend import recommend
from llamatune_torch.problems import Problem
from llamatune_torch.settings import Settings
from llamatune_torch.study import Study

CURVES = (Problem(c.name, c.space, c.direction, c.optimum, c.true_value, c.noise) for c in problems.NOISY_CURVES)
PROBLEMS = {problem.name: problem for problem in (*problems.ALL, *CURVES)}


class Search(NamedTuple):
    """One search to its whole budget.

    study     its record
    problem   that it searched
    ratios    gain / threshold of the rule after each trial, infinite while it is too early
    """

    study: Study
    problem: Problem
    ratios: list[float]

    def end(self, fraction: float) -> int:
        """The number of trials at which it would have ended."""
        scale = stopping.FRACTION / fraction
        return next((n for n, ratio in enumerate(self.ratios, 1) if ratio * scale < 1), len(self.ratios))

    def regret(self, n: int) -> float:
        """The regret of the trial that is recommended after ``n`` trials."""
        return self.problem.regret(recommend(replace(self.study, trials=self.study.trials[:n])).params)


def run(problem: Problem, evals: int, seed: int) -> Search:
    generator, ratios = np.random.default_rng(seed), list[float]()
    cheap: dict[str, Any] = {"num_restarts": 3, "num_screened": 256, "seed": seed}
    settings = Settings(stopping="auto", **cheap)
    tuner = LlamaTune(problem.space, None, evals, direction=problem.direction, progress=False, **cheap)
    for _ in range(evals):
        trial = tuner.ask()
        try:
            tuner.tell(trial, problem.evaluate(trial.params, generator))
        except MemoryError:
            tuner.tell(trial, float("nan"))
        verdict = stopping.assess(tuner.study, settings)
        ratios.append(float("inf") if verdict is None else verdict.gain / verdict.threshold)
    return Search(tuner.study, problem, ratios)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--fractions", type=float, nargs="+", default=[stopping.FRACTION])
    parser.add_argument("--evals", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    titles = [f"{what}, {fraction:g}" for fraction in options.fractions for what in ("ends at", "regret there")]
    rows = [["problem", "noise", *titles, f"regret at {options.evals}"]]
    records: list[dict[str, Any]] = []
    for name in options.problems:
        searches = [run(PROBLEMS[name], options.evals, seed) for seed in range(options.seeds)]
        cells = [name, f"{PROBLEMS[name].noise:g}"]
        for fraction in options.fractions:
            ends = [search.end(fraction) for search in searches]
            regrets = [search.regret(end) for search, end in zip(searches, ends, strict=True)]
            cells += [", ".join(map(str, sorted(ends))), f"{statistics.median(regrets):.2g}"]
            records.append({"problem": name, "fraction": fraction, "ends": ends, "regrets": regrets})
        whole = [search.regret(options.evals) for search in searches]
        rows.append([*cells, f"{statistics.median(whole):.2g}"])
        records.append({"problem": name, "regrets": whole})
    print(markdown(rows))
    for fraction in options.fractions:
        saved = [1 - statistics.mean(r["ends"]) / options.evals for r in records if r.get("fraction") == fraction]
        print(f"{fraction:g} saves {statistics.mean(saved):.0%} of the evaluations")
    print(json.dumps({"runs": records, "machine": platform.machine(), "torch": torch.__version__}))


if __name__ == "__main__":
    main()
