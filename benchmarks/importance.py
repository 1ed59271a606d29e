"""How well is importance told? Intervals that hold the truth, and a ranking next to Optuna's evaluators.

    python benchmarks/importance.py                                    # 100 studies of each problem
    python benchmarks/importance.py --studies 10 --problems g ishigami --design search

Functions with known Sobol indices are searched with 30 trials, or tried at random 30 times. Each study is explained,
from its trials alone. ``cover`` is the share of parameters whose 90 % interval holds the true index; bounds are rounded
outwards to hundredths, and so is no truth. ``tau`` is Kendall's (b) of the ranking by total index and the true ranking,
for this package, fANOVA and PED-ANOVA of Optuna with their defaults, on the same trials. ``seconds`` are of one
explanation with all that it has.

The true indices of Ishigami and the g-function have closed forms; those of the simulated tunes are averages over 2^14
quasi-random points of the functions without noise.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable, Sequence
from statistics import mean
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau, qmc

from llamatune_torch import LlamaTune, Real, SearchSpace, Study, Trial, problems
from llamatune_torch.goal import Goal
from llamatune_torch.insight.explain import explain
from llamatune_torch.problems import CurveProblem, Problem
from llamatune_torch.trial import TrialState

TRIALS = 30
G = (0.0, 1.0, 4.5, 9.0, 99.0)
Floats = NDArray[np.float64]


class Known(NamedTuple):
    """A function, and the first-order and total indices of its parameters."""

    problem: Problem | CurveProblem
    first: Sequence[float]
    total: Sequence[float]


def ishigami(params: dict[str, float]) -> float:
    x, y, z = (2 * math.pi * (params[f"x{i}"] - 0.5) for i in range(3))
    return math.sin(x) + 7 * math.sin(y) ** 2 + 0.1 * z**4 * math.sin(x)


def g_function(params: dict[str, float]) -> float:
    return math.prod((abs(4 * params[f"x{i}"] - 2) + a) / (1 + a) for i, a in enumerate(G))


def cube(d: int) -> SearchSpace:
    return SearchSpace({f"x{i}": Real(0, 1) for i in range(d)})


def known_ishigami() -> Known:
    """Ishigami and Homma (1990), with a = 7 and b = 0.1."""
    a, b, pi = 7.0, 0.1, math.pi
    variance = a**2 / 8 + b * pi**4 / 5 + b**2 * pi**8 / 18 + 0.5
    first = [0.5 * (1 + b * pi**4 / 5) ** 2 / variance, a**2 / 8 / variance, 0.0]
    both = b**2 * pi**8 * (1 / 18 - 1 / 50) / variance
    problem = Problem("ishigami", cube(3), "maximize", 17.5, ishigami)
    return Known(problem, first, [first[0] + both, first[1], both])


def known_g() -> Known:
    """Sobol's g-function (Saltelli and Sobol, 1995)."""
    parts = [1 / 3 / (1 + a) ** 2 for a in G]
    variance = math.prod(1 + part for part in parts) - 1
    others = [math.prod(1 + other for other in parts) / (1 + part) for part in parts]
    total = [part * rest / variance for part, rest in zip(parts, others, strict=True)]
    return Known(Problem("g", cube(5), "minimize", 0.0, g_function), [part / variance for part in parts], total)


def known_tune(problem: Problem | CurveProblem, points: int = 2**14) -> Known:
    """The indices of a simulated tune, by the estimators of Saltelli et al. (2010, table 2, b and f)."""
    d = problem.space.dim
    both = qmc.Sobol(2 * d, seed=0).random(points)
    A, B = both[:, :d], both[:, d:]

    def at(X: Floats) -> Floats:
        return np.array([problem.true_value(params) for params in problem.space.decode_all(problem.space.snap(X))])

    of_A, of_B = at(A), at(B)
    everything = np.concatenate([of_A, of_B])
    variance, first, total = everything.var(), [], []
    for i in range(d):
        mixed = A.copy()
        mixed[:, i] = B[:, i]
        of_mixed = at(mixed)
        first.append(max(0.0, float(((of_B - everything.mean()) * (of_mixed - of_A)).mean() / variance)))
        total.append(float(np.square(of_A - of_mixed).mean() / 2 / variance))
    return Known(problem, first, total)


TUNES = {problem.name: problem for problem in (*problems.ALL, *problems.CURVES)}
KNOWN: dict[str, Callable[[], Known]] = {
    "ishigami": known_ishigami,
    "g": known_g,
    **{name: (lambda name=name: known_tune(TUNES[name])) for name in ("fine_tune_4", "fine_tune_7", "fine_tuning")},
}


def make_study(problem: Problem | CurveProblem, seed: int, design: str) -> Study:
    """A study of ``TRIALS`` trials: searched, or at random."""
    generator = np.random.default_rng([seed, 5])

    def evaluate(params: dict[str, float]) -> float:
        if isinstance(problem, CurveProblem):
            return problem.curve(params, seed)[-1]
        return problem.evaluate(params, generator)

    if design == "search":
        tuner = LlamaTune(
            problem.space, evaluate, max_evals=TRIALS, direction=problem.direction, seed=seed, progress=False
        )
        tuner.optimize()
        return tuner.study
    rows = problem.space.decode_all(problem.space.snap(generator.random((TRIALS, problem.space.dim))))
    trials = [
        Trial(i, params, seed=i, origin="sobol", state=TrialState.COMPLETE, value=evaluate(params))
        for i, params in enumerate(rows)
    ]
    return Study(problem.space, Goal(problem.direction, "value"), trials=tuple(trials))


def rank_by_optuna(study: Study) -> dict[str, list[float]]:
    """What Optuna's evaluators say of the same trials, by evaluator; parameters as places in the unit cube."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    names = study.space.names
    cube = dict.fromkeys(names, optuna.distributions.FloatDistribution(0, 1))
    theirs = optuna.create_study(direction=study.direction)
    for trial in study.completed:
        x = dict(zip(names, map(float, study.space.encode(trial.params)), strict=True))
        theirs.add_trial(optuna.trial.create_trial(params=x, distributions=cube, value=trial.value))
    evaluators = {
        "fANOVA": optuna.importance.FanovaImportanceEvaluator(seed=0),
        "PED-ANOVA": optuna.importance.PedAnovaImportanceEvaluator(),
    }
    found = {}
    for name, evaluator in evaluators.items():
        importances = optuna.importance.get_param_importances(theirs, evaluator=evaluator)
        found[name] = [importances[each] for each in names]
    return found


def tau(found: Sequence[float], truth: Sequence[float]) -> float:
    """Kendall's tau-b; 0 where one of both ranks nothing."""
    value = float(kendalltau(found, np.round(truth, 3)).statistic)
    return 0.0 if math.isnan(value) else value


def measure(known: Known, studies: int, design: str) -> dict[str, float]:
    """Means over studies and parameters of one problem."""
    rows: list[dict[str, float]] = []
    for seed in range(studies):
        study = make_study(known.problem, seed, design)
        start = time.process_time()
        insight = explain(study)
        seconds = time.process_time() - start
        found = {each.name: each for each in insight.importance}
        ours = [found[name] for name in study.space.names]
        row = {
            "cover first": mean(a.first.low <= t <= a.first.high for a, t in zip(ours, known.first, strict=True)),
            "cover total": mean(a.total.low <= t <= a.total.high for a, t in zip(ours, known.total, strict=True)),
            "width": mean(a.total.high - a.total.low for a in ours),
            "tau": tau([a.total.value for a in ours], known.total),
        }
        for name, theirs in rank_by_optuna(study).items():
            row[f"tau {name}"] = tau(theirs, known.total)
        rows.append(row | {"seconds": seconds})
    return {name: mean(row[name] for row in rows) for name in rows[0]}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=100, help="of each problem")
    parser.add_argument("--problems", nargs="+", default=list(KNOWN), choices=list(KNOWN))
    parser.add_argument("--design", nargs="+", default=["search", "random"], choices=["search", "random"])
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")  # Optuna's experimental ones
    header: list[str] = []
    for design in options.design:
        for name in options.problems:
            known = KNOWN[name]()
            found = measure(known, options.studies, design)
            if not header:
                header = ["problem", *found]
                print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
            print(f"| {name}, {design} | {' | '.join(f'{value:.2f}' for value in found.values())} |", flush=True)


if __name__ == "__main__":
    main()
