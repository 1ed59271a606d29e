"""How large a hypervolume do 50 evaluations find? Next to BoTorch's own recipe for several objectives.

    OMP_NUM_THREADS=1 python benchmarks/objectives.py
    OMP_NUM_THREADS=1 python benchmarks/objectives.py --problems branin_currin --seeds 1 --evals 12

    branin_currin   two parameters, two objectives (Belakaria et al., 2019)
    zdt1            four parameters, two objectives (Zitzler et al., 2000)
    c2_dtlz2        four parameters, two objectives, one limit (Jain & Deb, 2014)

BoTorch's recipe is its tutorial's: a standardised SingleTaskGP for each outcome, qLogNEHVI with 128 samples, a pruned
baseline, ``optimize_acqf`` with 10 restarts of 512 samples, after as many Sobol points as this engine takes. Both get
the problem's reference point. A figure is the share of the largest hypervolume there is.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from botorch.acquisition.multi_objective.logei import qLogNoisyExpectedHypervolumeImprovement
from botorch.acquisition.multi_objective.objective import IdentityMCMultiOutputObjective
from botorch.fit import fit_gpytorch_mll
from botorch.models import ModelListGP, SingleTaskGP
from botorch.models.transforms import Standardize
from botorch.optim import optimize_acqf
from botorch.sampling import SobolQMCNormalSampler
from botorch.test_functions.multi_objective import C2DTLZ2, ZDT1, BraninCurrin
from botorch.utils.multi_objective.hypervolume import Hypervolume
from botorch.utils.multi_objective.pareto import is_non_dominated
from gpytorch.mlls import SumMarginalLogLikelihood
from scores import markdown
from torch import Tensor

from llamatune_torch import LlamaTune, Outcome, Real

PROBLEMS: dict[str, Callable[[], Any]] = {
    "branin_currin": lambda: BraninCurrin(negate=True).double(),
    "zdt1": lambda: ZDT1(dim=4, num_objectives=2, negate=True).double(),
    "c2_dtlz2": lambda: C2DTLZ2(dim=4, num_objectives=2, negate=True).double(),
}
MARKS = (10, 20, 30, 50)


def values_at(problem: Any, x: Tensor) -> tuple[list[float], list[float]]:
    """The objectives (larger is better) and the slacks of the limits (kept where >= 0) of one point of the cube."""
    X = x.unsqueeze(0)
    slack = problem.evaluate_slack_true(X)[0].tolist() if hasattr(problem, "evaluate_slack_true") else []
    return problem(X)[0].tolist(), slack


def shares(problem: Any, found: list[tuple[list[float], list[float]]]) -> list[float]:
    """The share of the largest hypervolume after each evaluation."""
    volume, trace = Hypervolume(problem.ref_point), []
    for k in range(1, len(found) + 1):
        kept = [values for values, slack in found[:k] if all(s >= 0 for s in slack)]
        Y = torch.tensor(kept, dtype=torch.float64).reshape(-1, 2)
        Y = Y[(Y > problem.ref_point).all(dim=-1)]
        trace.append(float(volume.compute(Y[is_non_dominated(Y)])) / problem.max_hv if len(Y) else 0.0)
    return trace


def run_ours(problem: Any, evals: int, seed: int) -> list[float]:
    """This engine, as people use it."""
    found, names = [], [f"x{i}" for i in range(problem.dim)]

    def evaluate(params: dict[str, float]) -> Outcome:
        values, slack = values_at(problem, torch.tensor([params[name] for name in names], dtype=torch.float64))
        found.append((values, slack))
        return Outcome(values[0], outcomes={"second": values[1]} | {f"slack{i}": s for i, s in enumerate(slack)})

    reference = problem.ref_point.tolist()
    num_limits = getattr(problem, "num_constraints", 0)
    LlamaTune(
        {name: Real(0, 1) for name in names},
        evaluate,
        evals,
        objectives={"first": ("maximize", reference[0]), "second": ("maximize", reference[1])},
        constraints={f"slack{i}": ">= 0" for i in range(num_limits)},
        seed=seed,
        progress=False,
    ).optimize()
    return shares(problem, found)


def run_random(problem: Any, evals: int, seed: int) -> list[float]:
    """Sobol points."""
    X = torch.quasirandom.SobolEngine(problem.dim, scramble=True, seed=seed).draw(evals, dtype=torch.float64)
    return shares(problem, [values_at(problem, x) for x in X])


def run_botorch(problem: Any, evals: int, seed: int, num_initial: int) -> list[float]:
    """BoTorch's tutorial recipe."""
    torch.manual_seed(seed)
    X = torch.quasirandom.SobolEngine(problem.dim, scramble=True, seed=seed).draw(num_initial, dtype=torch.float64)
    found = [values_at(problem, x) for x in X]
    bounds = torch.stack([torch.zeros(problem.dim), torch.ones(problem.dim)]).double()
    while len(found) < evals:
        # A limit is kept where BoTorch's outcome is not above zero.
        Y = torch.tensor([values + [-s for s in slack] for values, slack in found], dtype=torch.float64)
        models = [SingleTaskGP(X, Y[:, [j]], outcome_transform=Standardize(m=1)) for j in range(Y.shape[-1])]
        model = ModelListGP(*models)
        fit_gpytorch_mll(SumMarginalLogLikelihood(model.likelihood, model))
        acquisition = qLogNoisyExpectedHypervolumeImprovement(
            model,
            problem.ref_point.tolist(),
            X,
            SobolQMCNormalSampler(torch.Size([128]), seed=seed),
            objective=IdentityMCMultiOutputObjective(outcomes=[0, 1]),
            constraints=[lambda Z, j=j: Z[..., j] for j in range(2, Y.shape[-1])] or None,
            prune_baseline=True,
        )
        x, _ = optimize_acqf(acquisition, bounds, q=1, num_restarts=10, raw_samples=512)
        X = torch.cat([X, x.detach()])
        found.append(values_at(problem, x[0].detach()))
    return shares(problem, found)


def initial_points(dim: int) -> int:
    """The number of Sobol points with which this engine begins."""
    search = LlamaTune({f"x{i}": Real(0, 1) for i in range(dim)}, progress=False)
    while (trial := search.ask()).origin == "sobol":
        search.tell(trial, sum(trial.params.values()))
    return trial.number


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--evals", type=int, default=50)
    parser.add_argument("--json", help="a file for all traces")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(f"{platform.machine()}, torch {torch.__version__}, {options.seeds} seeds, medians; shares of the largest")
    traces: dict[str, list[list[float]]] = {}
    marks = [mark for mark in MARKS if mark <= options.evals] or [options.evals]
    rows = []
    for name in options.problems:
        problem = PROBLEMS[name]()
        first = initial_points(problem.dim)
        methods: dict[str, Callable[[int], list[float]]] = {
            "this": lambda seed, problem=problem: run_ours(problem, options.evals, seed),
            "botorch": lambda seed, problem=problem, n=first: run_botorch(problem, options.evals, seed, n),
            "sobol": lambda seed, problem=problem: run_random(problem, options.evals, seed),
        }
        for method, run in methods.items():
            begun = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = [run(seed) for seed in range(options.seeds)]
            seconds = (time.perf_counter() - begun) / options.seeds
            traces[f"{name}/{method}"] = found
            medians = [f"{statistics.median(trace[mark - 1] for trace in found):.3f}" for mark in marks]
            rows.append([name, method, *medians, f"{min(trace[-1] for trace in found):.3f}", f"{seconds:.0f}"])
            print(" ".join(rows[-1]), flush=True)
    print()
    head = ["problem", "method", *(f"at {mark}" for mark in marks), "worst seed", "seconds"]
    print(markdown([head, *rows]))
    if options.json:
        with open(options.json, "w") as file:
            json.dump(traces, file)


if __name__ == "__main__":
    logging.getLogger("llamatune_torch").setLevel(logging.WARNING)
    main()
