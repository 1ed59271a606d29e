"""How much does a thinned history cost? Searches whose models are given all trials next to some that are given few.

    OMP_NUM_THREADS=1 python benchmarks/thinning.py

The cap, 1,000 trials in the product, is lowered to what a short search passes. Regrets of the best true value, as in
``regret.py``; medians over seeds.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from scores import markdown

from llamatune_torch import LlamaTune, problems
from llamatune_torch.engine import thinning
from llamatune_torch.problems import Problem

PROBLEMS = {p.name: p for p in (problems.hartmann6, problems.fine_tuning, problems.mixed, problems.memory_limited)}


@contextmanager
def cap(trials: int) -> Any:
    former, thinning.MAX_CONDITIONED = thinning.MAX_CONDITIONED, trials
    try:
        yield
    finally:
        thinning.MAX_CONDITIONED = former


def regrets(problem: Problem, trials: int, seed: int, at: Sequence[int]) -> list[float]:
    """The regret of the best true value after so many evaluations, with the models given ``trials`` of them."""
    generator, best, found = np.random.default_rng(seed), float("inf"), []
    tuner = LlamaTune(problem.space, max_evals=max(at), direction=problem.direction, seed=seed, progress=False)
    with cap(trials):
        for n in range(1, max(at) + 1):
            trial = tuner.ask()
            try:
                tuner.tell(trial, problem.evaluate(trial.params, generator))
                best = min(best, problem.regret(trial.params))
            except MemoryError:
                tuner.tell(trial, float("nan"))
            if n in at:
                found.append(best)
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--caps", type=int, nargs="+", default=[1000, 80, 40])
    parser.add_argument("--at", type=int, nargs="+", default=[60, 100, 160])
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = [["problem", "cap", *(f"regret at {n}" for n in options.at)]]
    for name in options.problems:
        for trials in options.caps:
            runs = [regrets(PROBLEMS[name], trials, seed, options.at) for seed in range(options.seeds)]
            rows.append(
                [name, str(trials), *(f"{statistics.median(column):.2g}" for column in zip(*runs, strict=True))]
            )
    print(markdown(rows))
    print(json.dumps({"seeds": options.seeds, "machine": platform.machine(), "torch": torch.__version__}))


if __name__ == "__main__":
    main()
