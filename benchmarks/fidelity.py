"""How much training does a good configuration take? Strategies that pause runs next to full runs, by cost.

    OMP_NUM_THREADS=1 python benchmarks/fidelity.py    # what is missing in results/fidelity.jsonl, then the tables
    OMP_NUM_THREADS=1 python benchmarks/fidelity.py --seeds 2 --problems crossing --methods screen full random
    python benchmarks/fidelity.py --report             # the tables only

A run is one method on one problem from one seed. It trains step by step, ten equal steps a run, and what it pays for is
counted in full runs. Each is written down as soon as it is done. Runs on recorded curves (``recorded.py``) stay in a
file beside the other that is not committed.

*Score* at a cost: the true regret of the finished run that looks best, divided by random search's at the same cost,
at most ``CAP``. So 0 is the optimum and 1 is random full runs: the median of 4,000 draws from 1,000 random points. A
method that has finished nothing has ``CAP``. ``top_k`` knows its budget, and makes a run of its own for each cost.
All points are asked for one after the other.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import heapq
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import peers
import recorded
import torch
from scores import markdown

from llamatune_torch import BudgetSpentError, LlamaTune, StillRunningError, Trial, problems
from llamatune_torch.problems import NUM_STEPS, CurveProblem
from llamatune_torch.space import Params

RESULTS = Path(__file__).parent / "results" / "fidelity.jsonl"
COSTS = (4, 8, 12, 16, 20, 30)
CAP = 3.0
GROUPS = {
    "fine-tune-like": ("fine_tune_4", "fine_tune_7", "fine_tune_12", "deberta_curves", "nmt_curves"),
    "adversarial": ("crossing", "reversed", "useless", "late_divergence", "cliffs"),
    "fine-tune-like, with noise": ("fine_tune_4_noisy", "fine_tune_7_noisy", "fine_tune_12_noisy"),
    "adversarial, with noise": (
        "crossing_noisy", "reversed_noisy", "useless_noisy", "late_divergence_noisy", "cliffs_noisy"
    ),
}  # fmt: skip
PROBLEMS = {problem.name: problem for problem in (*problems.CURVES, *problems.NOISY_CURVES)}
RUNGS = [0.1, 0.3, 1.0]  # those of the papers, a ratio of three, at steps of a run

Run = dict[str, Any]


class Training:
    """The runs of one search: what they show, what they cost, and how good the finished one is that looks best.

    ``regrets`` has the cost in full runs and the true regret whenever another finished run began to look best.
    """

    def __init__(self, problem: CurveProblem, seed: int) -> None:
        self.problem = problem
        self.seed = seed
        self.num_steps = 0
        self.best: float | None = None
        self.regrets: list[list[float]] = []

    @property
    def cost(self) -> float:
        return self.num_steps / NUM_STEPS

    def train(self, params: Params, first: int, last: int) -> list[float]:
        """Trains a run from the end of one step to the end of another, and returns the values in between."""
        values = self.problem.curve(params, self.seed)[first:last]
        self.num_steps += last - first
        sign = 1.0 if self.problem.direction == "minimize" else -1.0
        if last == NUM_STEPS and (self.best is None or sign * values[-1] < sign * self.best):
            self.best = values[-1]
            self.regrets.append([self.cost, float(f"{max(self.problem.regret(params), 0.0):.5g}")])
        return values


def search(
    training: Training, budget: int, seed: int, strategy: Any, rungs: list[float] | None = None, workers: int = 1
) -> None:
    """This engine, by ask, report, pause and tell; with several workers, whoever is free asks.

    Time is simulated: each step of a run takes the same.
    """
    problem = training.problem
    tuner = LlamaTune(
        problem.space, max_evals=budget, direction=problem.direction, seed=seed, strategy=strategy, rungs=rungs,
        progress=False,
    )  # fmt: skip
    now, running = 0, list[tuple[int, int, Trial]]()  # when each ends
    while True:
        while len(running) < workers and tuner.may_ask():
            try:
                trial = tuner.ask()
            except (BudgetSpentError, StillRunningError):
                break
            steps = last_step(trial) - first_step(trial)
            heapq.heappush(running, (now + steps, trial.number, trial))
        if not running:
            return
        now, _, trial = heapq.heappop(running)
        first, last = first_step(trial), last_step(trial)
        values = training.train(trial.params, first, last)
        for step, value in enumerate(values, start=first + 1):
            tuner.report(trial, step, value, step / NUM_STEPS)
        if last == NUM_STEPS:
            tuner.tell(trial, values[-1])
        else:
            tuner.pause(trial)


def first_step(trial: Trial) -> int:
    return round(trial.reached * NUM_STEPS)


def last_step(trial: Trial) -> int:
    return math.ceil(trial.until * NUM_STEPS - 1e-6)


def search_at_random(training: Training, budget: int, seed: int) -> None:
    peer = peers.RandomSearch(training.problem, budget, seed)
    for params in peer.ask(budget):
        training.train(params, 0, NUM_STEPS)


def search_optuna(training: Training, budget: int, seed: int) -> None:
    """Multivariate TPE, and runs that its pruner of successive halving, at 1, 3 and 9 steps, ends."""
    import optuna

    peer = peers.Optuna(training.problem, budget, seed, "tpe")
    peer.study.pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    while training.num_steps < budget * NUM_STEPS:
        (params,) = peer.ask(1)
        (trial,) = peer.asked
        for step in range(NUM_STEPS):
            (value,) = training.train(params, step, step + 1)
            trial.report(value, step + 1)
            if step + 1 < NUM_STEPS and trial.should_prune():
                peer.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            peer.study.tell(trial, value)


METHODS: dict[str, Callable[[Training, int, int], None]] = {
    "screen": functools.partial(search, strategy="screen"),
    "screen, 4 workers": functools.partial(search, strategy="screen", workers=4),
    "full": functools.partial(search, strategy="full"),
    "top_k": functools.partial(search, strategy="top_k"),
    "asha": functools.partial(search, strategy="asha", rungs=RUNGS),
    "hyperband": functools.partial(search, strategy="hyperband", rungs=RUNGS),
    "successive_halving": functools.partial(search, strategy="successive_halving", rungs=RUNGS),
    "median": functools.partial(search, strategy="median"),
    "random": search_at_random,
    "optuna-tpe-sh": search_optuna,
}


def problem_names() -> list[str]:
    return [*PROBLEMS, *(recorded.CURVE_MAKERS if recorded.DATA.is_dir() else ())]


def problem_named(name: str) -> CurveProblem:
    # A recorded problem remembers which of its runs were drawn, so each search gets its own.
    return recorded.CURVE_MAKERS[name]() if name in recorded.CURVE_MAKERS else PROBLEMS[name]


def run_one(problem_name: str, method: str, seed: int, budget: int) -> Run:
    """One search, as a record of plain numbers."""
    training = Training(problem_named(problem_name), seed)
    started = time.process_time()
    METHODS[method](training, budget, seed)
    return {
        "problem": problem_name,
        "method": method,
        "seed": seed,
        "budget": budget,
        "regrets": training.regrets,
        "spent": training.cost,
        "cpu_seconds": round(time.process_time() - started, 2),
    }


def budgets_of(method: str) -> Sequence[int]:
    return COSTS if method == "top_k" else COSTS[-1:]


@functools.cache
def random_regrets(problem_name: str) -> dict[int, float]:
    """The median regret of the best of so many random full runs."""
    problem, generator = problem_named(problem_name), np.random.default_rng(0)
    space = problem.space
    regrets = np.array([problem.regret(p) for p in space.decode_all(space.snap(generator.random((1000, space.dim))))])
    return {
        cost: float(np.median(generator.choice(regrets, (4000, cost)).min(axis=1)))  # as good as without replacement
        for cost in COSTS
    }


def score(run: Run, cost: int) -> float:
    """The score of a run at a cost; see the module."""
    reached = [regret for at, regret in run["regrets"] if at <= cost + 1e-6]
    return min(CAP, reached[-1] / random_regrets(run["problem"])[cost]) if reached else CAP


class Scores:
    """The scores of all runs, by problem, method, cost and seed."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.found: dict[tuple[str, str, int], dict[int, float]] = {}
        for run in runs:
            for cost in COSTS:
                if run["budget"] == (cost if run["method"] == "top_k" else COSTS[-1]):
                    self.found.setdefault((run["problem"], run["method"], cost), {})[run["seed"]] = score(run, cost)

    def seeds(self, names: Sequence[str], methods: Sequence[str]) -> list[int]:
        """Seeds that all of these methods have run on all of these problems."""
        each = [set(self.found.get((p, m, c), {})) for p, m, c in product(names, methods, COSTS)]
        return sorted(set.intersection(*each)) if each else []

    def summary(self, names: Sequence[str], method: str, cost: int, seeds: Sequence[int]) -> tuple[float, float, float]:
        """Mean over problems of the median over seeds; the mean over all runs, and its standard error over seeds."""
        table = [[self.found[name, method, cost][seed] for seed in seeds] for name in names]
        by_seed = [statistics.mean(column) for column in zip(*table, strict=True)]
        error = statistics.stdev(by_seed) / math.sqrt(len(by_seed)) if len(by_seed) > 1 else math.nan
        return statistics.mean(map(statistics.median, table)), statistics.mean(by_seed), error

    def difference(self, names: Sequence[str], methods: tuple[str, str], cost: int, seeds: Sequence[int]) -> str:
        """The mean difference of two methods on the same problems and seeds, and its standard error over seeds."""
        by_seed = [
            statistics.mean(
                self.found[name, methods[0], cost][seed] - self.found[name, methods[1], cost][seed] for name in names
            )
            for seed in seeds
        ]
        error = statistics.stdev(by_seed) / math.sqrt(len(by_seed)) if len(by_seed) > 1 else math.nan
        return f"{statistics.mean(by_seed):+.2f} ({error:.2f})"


def tables(runs: Sequence[Run], names: Sequence[str], methods: Sequence[str], against: str) -> Iterator[str]:
    """For each group of problems: medians, means, differences; then the median on each problem."""
    scores = Scores(runs)
    for title, group in GROUPS.items():
        chosen = [name for name in group if name in names]
        seeds = scores.seeds(chosen, methods)
        if not chosen or not seeds:
            continue
        rows = [["method", *(f"{c}" for c in COSTS), *(f"mean (se), {c}" for c in COSTS)]]
        for method in methods:
            found = [scores.summary(chosen, method, cost, seeds) for cost in COSTS]
            rows.append([method, *(f"{m:.2f}" for m, _, _ in found), *(f"{m:.2f} ({e:.2f})" for _, m, e in found)])
        yield f"**{title}** ({', '.join(chosen)}), {len(seeds)} seeds; medians, then means\n\n{markdown(rows)}"
        others = [method for method in methods if method != against] if against in methods else []
        rows = [[f"{against} minus", *(f"{c}" for c in COSTS)]]
        rows += [[m, *(scores.difference(chosen, (against, m), c, seeds) for c in COSTS)] for m in others]
        if others:
            yield markdown(rows)
    rows = [["problem, " + " / ".join(map(str, COSTS)), *methods]]
    for name in names:
        cells = []
        for method in methods:
            found = [scores.found.get((name, method, cost), {}) for cost in COSTS]
            cells.append(" / ".join(f"{statistics.median(f.values()):.2f}" if f else "-" for f in found))
        rows.append([name, *cells])
    yield markdown(rows)


def summary(runs: Sequence[Run], names: Sequence[str], methods: Sequence[str]) -> dict[str, Any]:
    """The figures that are committed of all runs, those on recorded curves among them."""
    scores = Scores(runs)
    found: dict[str, Any] = {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU used",
        "with": versions(),
        "median_mean_and_standard_error": {},
        "medians": {},
    }
    for title, group in GROUPS.items():
        chosen = [name for name in group if name in names]
        seeds = scores.seeds(chosen, methods)
        if chosen and seeds:
            found["median_mean_and_standard_error"][title] = {
                "problems": chosen,
                "seeds": seeds,
                **{m: {c: [round(v, 3) for v in scores.summary(chosen, m, c, seeds)] for c in COSTS} for m in methods},
            }
    for name, method in product(names, methods):
        each = {c: scores.found.get((name, method, c)) for c in COSTS}
        medians = {c: round(statistics.median(values.values()), 3) for c, values in each.items() if values}
        found["medians"].setdefault(name, {})[method] = medians
    return found


def versions() -> str:
    names = ["torch", "gpytorch", "botorch", "numpy", *(["optuna"] if importlib.util.find_spec("optuna") else [])]
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names) + (
        f", Python {platform.python_version()}"
    )


def beside(path: Path) -> Path:
    """The file of runs on recorded curves."""
    return path.with_name(f"{path.stem}.recorded.jsonl")


def read_runs(path: Path) -> list[Run]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def perform(options: argparse.Namespace) -> None:
    """Makes the runs that are missing, all problems and methods from one seed before the next."""
    files = (options.output, beside(options.output))
    done = {(r["problem"], r["method"], r["seed"], r["budget"]) for path in files for r in read_runs(path)}
    jobs = [
        (problem, method, seed, budget)
        for seed, problem, method in product(options.seeds, options.problems, options.methods)
        for budget in budgets_of(method)
        if (problem, method, seed, budget) not in done
    ]
    for count, job in enumerate(jobs, start=1):
        run = run_one(*job)
        path = beside(options.output) if run["problem"] in recorded.CURVE_MAKERS else options.output
        with path.open("a") as file:
            file.write(json.dumps(run) + "\n")
        if sys.stderr.isatty() or count == len(jobs):
            print(f"\r{count} of {len(jobs)} runs", end="" if count < len(jobs) else "\n", file=sys.stderr)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="seeds from 0 on")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--problems", nargs="+", default=problem_names(), choices=problem_names())
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--against", default="screen", choices=list(METHODS), help="the method that others are held to")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the file of runs; what is in it is not run again")
    parser.add_argument("--report", action="store_true", help="no new runs")
    options = parser.parse_args(arguments)
    options.seeds = range(options.first_seed, options.first_seed + options.seeds)
    if not recorded.DATA.is_dir():
        print("recorded curves: no shared/data next to this checkout, left out", file=sys.stderr)
    if "optuna-tpe-sh" in options.methods and not importlib.util.find_spec("optuna"):
        print("optuna-tpe-sh: optuna is not installed, no runs", file=sys.stderr)
        options.methods.remove("optuna-tpe-sh")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    if not options.report:
        perform(options)
    runs = [run for path in (options.output, beside(options.output)) for run in read_runs(path)]
    runs = [run for run in runs if run["seed"] in options.seeds]
    print("\n\n".join(tables(runs, options.problems, options.methods, options.against)))
    figures = json.dumps(summary(runs, options.problems, options.methods), indent=1)
    options.output.with_suffix(".json").write_text(figures + "\n")


if __name__ == "__main__":
    main()
