"""How good is the best trial that keeps the limits, and how many break them? Next to BoTorch's own recipe.

    OMP_NUM_THREADS=1 python benchmarks/constraints.py
    OMP_NUM_THREADS=1 python benchmarks/constraints.py --problems gramacy --seeds 2 --evals 15

    gardner           two parameters, one limit (Gardner et al., 2014); the best is -2 at its corners
    gramacy           two parameters, two limits (Gramacy et al., 2016); the best is .5998
    pressure_vessel   four parameters, three limits (Coello & Montes, 2002, without rounding of the thicknesses); 5,885
    memory_wall       a simulated fine-tune, whose memory grows with batch times length; the best leans on the limit

BoTorch's recipe is its tutorial's: a standardised SingleTaskGP for each outcome, the logarithm of constrained expected
improvement, ``optimize_acqf`` with 10 restarts of 512 samples, after as many Sobol points as this engine takes.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scores import markdown

from llamatune_torch import LlamaTune, Outcome, Real, SearchSpace
from llamatune_torch.space import Params


@dataclass(frozen=True)
class Limited:
    """A function to minimise whose outcomes must all be <= 0."""

    name: str
    space: SearchSpace
    evaluate: Callable[[Params], tuple[float, dict[str, float]]]


def _gardner(p: Params) -> tuple[float, dict[str, float]]:
    return math.cos(2 * p["x"]) * math.cos(p["y"]) + math.sin(p["x"]), {"c": math.cos(p["x"] + p["y"]) - 0.5}


def _gramacy(p: Params) -> tuple[float, dict[str, float]]:
    x, y = p["x"], p["y"]
    wave = 0.5 * math.sin(2 * math.pi * (x**2 - 2 * y))
    return x + y, {"c1": 1.5 - x - 2 * y - wave, "c2": x**2 + y**2 - 1.5}


def _pressure_vessel(p: Params) -> tuple[float, dict[str, float]]:
    shell, head, radius, length = p["shell"], p["head"], p["radius"], p["length"]
    cost = 0.6224 * shell * radius * length + 1.7781 * head * radius**2
    cost += 3.1661 * shell**2 * length + 19.84 * shell**2 * radius
    volume = math.pi * radius**2 * length + 4 / 3 * math.pi * radius**3
    return cost, {"c1": 0.0193 * radius - shell, "c2": 0.00954 * radius - head, "c3": (1_296_000 - volume) / 1e5}


def _memory_wall(p: Params) -> tuple[float, dict[str, float]]:
    off = math.log10(p["rate"] / (3e-4 * (p["batch"] / 16) ** 0.3))
    loss = 1 + 0.3 * off**2 - 0.05 * math.log2(p["batch"] / 4) - 0.04 * math.log2(p["length"] / 128)
    return loss, {"memory": (4 + 0.0006 * p["batch"] * p["length"]) - 12}


PROBLEMS = {
    problem.name: problem
    for problem in (
        Limited("gardner", SearchSpace({"x": Real(0, 6), "y": Real(0, 6)}), _gardner),
        Limited("gramacy", SearchSpace({"x": Real(0, 1), "y": Real(0, 1)}), _gramacy),
        Limited(
            "pressure_vessel",
            SearchSpace(
                {
                    "shell": Real(0.06, 6, prior="uniform"),
                    "head": Real(0.06, 6, prior="uniform"),
                    "radius": Real(10, 200),
                    "length": Real(10, 200),
                }
            ),
            _pressure_vessel,
        ),
        Limited(
            "memory_wall",
            SearchSpace(
                {
                    "rate": Real(1e-5, 1e-2, prior="log-uniform"),
                    "batch": Real(4, 128, prior="log-uniform"),
                    "length": Real(128, 2048, prior="log-uniform"),
                }
            ),
            _memory_wall,
        ),
    )
}

Trials = list[tuple[float, bool]]  # value, and whether it keeps all limits


def run_ours(problem: Limited, evals: int, seed: int) -> Trials:
    limits = dict.fromkeys(problem.evaluate(problem.space.decode([0.5] * problem.space.dim))[1], "<= 0")
    tuner = LlamaTune(
        problem.space, max_evals=evals, direction="minimize", constraints=limits, seed=seed, progress=False
    )
    for _ in range(evals):
        trial = tuner.ask()
        value, outcomes = problem.evaluate(trial.params)
        tuner.tell(trial, Outcome(value, outcomes=outcomes))
    return [(trial.value or 0.0, tuner.study.is_feasible(trial)) for trial in tuner.study.trials]


def run_random(problem: Limited, evals: int, seed: int) -> Trials:
    points = np.random.default_rng(seed).random((evals, problem.space.dim))
    found = [problem.evaluate(params) for params in problem.space.decode_all(points)]
    return [(value, max(outcomes.values()) <= 0) for value, outcomes in found]


def run_botorch(problem: Limited, evals: int, seed: int) -> Trials:
    from botorch.acquisition.analytic import LogConstrainedExpectedImprovement
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import ModelListGP, SingleTaskGP
    from botorch.models.transforms import Standardize
    from botorch.optim import optimize_acqf
    from gpytorch.mlls import SumMarginalLogLikelihood

    torch.manual_seed(seed)
    dim = problem.space.dim
    first = min(max(dim + 1, 4), 10)
    X = torch.quasirandom.SobolEngine(dim, scramble=True, seed=seed).draw(first, dtype=torch.float64)
    found = [problem.evaluate(params) for params in problem.space.decode_all(X.numpy())]
    while len(found) < evals:
        Y = torch.tensor([[-value, *outcomes.values()] for value, outcomes in found], dtype=torch.float64)
        gps = [SingleTaskGP(X, Y[:, j : j + 1], outcome_transform=Standardize(1)) for j in range(Y.shape[1])]
        model = ModelListGP(*gps)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit_gpytorch_mll(SumMarginalLogLikelihood(model.likelihood, model))
            feasible = (Y[:, 1:] <= 0).all(dim=-1)
            best_f = Y[feasible, 0].max() if bool(feasible.any()) else Y[:, 0].min()
            limits: dict[int, tuple[float | None, float | None]] = dict.fromkeys(range(1, Y.shape[1]), (None, 0.0))
            acquisition = LogConstrainedExpectedImprovement(model, best_f, objective_index=0, constraints=limits)
            bounds = torch.tensor([[0.0] * dim, [1.0] * dim], dtype=torch.float64)
            x, _ = optimize_acqf(acquisition, bounds, q=1, num_restarts=10, raw_samples=512)
        X = torch.cat([X, x.detach()])
        found.append(problem.evaluate(problem.space.decode(x[0].numpy())))
    return [(value, max(outcomes.values()) <= 0) for value, outcomes in found]


METHODS: dict[str, Callable[[Limited, int, int], Trials]] = {
    "this": run_ours,
    "botorch": run_botorch,
    "random": run_random,
}


def best_feasible(trials: Trials) -> float:
    return min((value for value, feasible in trials if feasible), default=math.inf)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--evals", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    half = options.evals // 2
    rows = [["problem", "", f"best feasible at {half}", f"at {options.evals}", "break a limit", "CPU s"]]
    records: list[dict[str, Any]] = []
    for name in options.problems:
        for method in options.methods:
            started = time.process_time()
            runs = [METHODS[method](PROBLEMS[name], options.evals, seed) for seed in range(options.seeds)]
            seconds = (time.process_time() - started) / options.seeds
            at = [[best_feasible(run[:n]) for run in runs] for n in (half, options.evals)]
            broken = [sum(not feasible for _, feasible in run) for run in runs]
            medians = [f"{statistics.median(values):.5g}" for values in at]
            rows.append([name, method, *medians, f"{statistics.mean(broken):.1f}", f"{seconds:.1f}"])
            records.append({"problem": name, "method": method, "best": at[1], "broken": broken})
    print(markdown(rows))
    print(json.dumps({"runs": records, "machine": platform.machine(), "torch": torch.__version__}))


if __name__ == "__main__":
    main()
