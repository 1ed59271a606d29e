"""How good is the best of so many evaluations? This engine next to random search and its peers.

    python benchmarks/regret.py                               # everything, 10 seeds, 40 evaluations
    python benchmarks/regret.py --seeds 2 --evals 15 --problems branin mixed --methods llamatune random

Writes ``benchmarks/results/regret.json`` (with ``--plot`` the picture too) and prints the table of normalised
regret: the median over the seeds of the regret of the best evaluation so far, divided by random search's at the
same number of evaluations (0 is the optimum, 1 is random search). Peers run in their default set-up; one that is
not installed is left out and named. Recorded problems (a look-up of the nearest of other people's runs) join
where their data are there.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import logging
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import landscapes
import numpy as np
import recorded
import torch

from llamatune_torch import Categorical, Integer, LlamaTune, Outcome, Real, problems
from llamatune_torch.parameter import Parameter
from llamatune_torch.problems import Problem

HERE = Path(__file__).parent
CHECKPOINTS = (10, 20, 30, 40)
PROBLEMS = {problem.name: problem for problem in (*problems.ALL, *landscapes.ALL)}

Params = dict[str, Any]
Evaluate = Callable[[Params], float]  # raises for a failed run


def problem_named(name: str) -> Problem:
    return recorded.MAKERS[name]() if name in recorded.MAKERS else PROBLEMS[name]


def problem_names() -> list[str]:
    return [*PROBLEMS, *(recorded.MAKERS if recorded.DATA.is_dir() else ())]


def llamatune(problem: Problem, evaluate: Evaluate, evals: int, seed: int, **settings: Any) -> None:
    def outcome(params: Params) -> float | Outcome:
        try:
            return evaluate(params)
        except MemoryError:
            return Outcome.failure("out of memory")

    tuner = LlamaTune(problem.space, outcome, evals, direction=problem.direction, seed=seed, progress=False, **settings)
    tuner.run(lambda trial: outcome(dict(trial.params)))


def random_search(problem: Problem, evaluate: Evaluate, evals: int, seed: int) -> None:
    U = torch.rand(evals, problem.space.dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for params in problem.space.decode_all(problem.space.snap(U)):
        try:
            evaluate(params)
        except MemoryError:
            continue


def suggested(trial: Any, name: str, parameter: Parameter) -> Any:
    """A value from an Optuna trial; a special one by a choice that comes before the range."""
    if isinstance(parameter, Categorical):
        return trial.suggest_categorical(name, list(parameter.choices))
    if parameter.special:
        kind = trial.suggest_categorical(f"kind of {name}", ["ordinary", *parameter.special])
        if kind != "ordinary":
            return kind
    suggest = trial.suggest_int if isinstance(parameter, Integer) else trial.suggest_float
    return suggest(name, parameter.low, parameter.high, log=parameter.prior == "log-uniform")


def optuna_with(sampler: str) -> Callable[[Problem, Evaluate, int, int], None]:
    def run(problem: Problem, evaluate: Evaluate, evals: int, seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)

        def objective(trial: optuna.Trial) -> float:
            # Conditions in Optuna's own manner: define-by-run asks for the active parameters only.
            params: Params = {}
            for name in problem.space.parents_first:
                conditions = problem.space.conditions[name]
                if all(parent in params and params[parent] in values for parent, values in conditions.items()):
                    params[name] = suggested(trial, name, problem.space[name])
            return evaluate(params)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "experimental" notices of the peer
            chosen = {
                "tpe": lambda: optuna.samplers.TPESampler(seed=seed, multivariate=True),
                "gp": lambda: optuna.samplers.GPSampler(seed=seed),
            }[sampler]()
            study = optuna.create_study(sampler=chosen, direction=problem.direction)
            study.optimize(objective, n_trials=evals, catch=(MemoryError,))

    return run


METHODS: dict[str, Callable[..., None]] = {
    "llamatune": llamatune,
    "random": random_search,
    "optuna-tpe": optuna_with("tpe"),
    "optuna-gp": optuna_with("gp"),
}


def in_worker() -> None:
    """One thread for each of the processes that run side by side, and no line for each of their trials."""
    torch.set_num_threads(1)
    logging.getLogger("llamatune_torch").setLevel(logging.CRITICAL)


def run_one(problem_name: str, method: str, seed: int, evals: int, settings: dict[str, Any]) -> dict[str, Any]:
    """One optimization: the regret of the best evaluation (as seen) after each evaluation, and the failures."""
    problem = problem_named(problem_name)
    generator = np.random.default_rng(seed)
    sign = 1.0 if problem.direction == "maximize" else -1.0
    best_seen, regret, failures = -np.inf, np.nan, 0
    regrets: list[float] = []

    def evaluate(params: Params) -> float:
        nonlocal best_seen, regret, failures
        try:
            value = problem.evaluate(params, generator)
        except MemoryError:
            failures += 1
            regrets.append(regret)
            raise
        if sign * value > best_seen:
            # What was seen decides which evaluation counts; what is true decides how good it is.
            best_seen, regret = sign * value, problem.regret(params)
        regrets.append(float(f"{regret:.6g}"))
        return value

    started = time.process_time()
    METHODS[method](problem, evaluate, evals, seed, **settings)
    return {
        "problem": problem_name,
        "method": method,
        "seed": seed,
        "regrets": regrets,
        "failures": failures,
        "cpu_seconds": round(time.process_time() - started, 2),
    }


def table(runs: list[dict[str, Any]], evals: int) -> str:
    """Normalised regret (median over seeds / random search's median) at the checkpoints, and failures."""
    points = [n for n in CHECKPOINTS if n <= evals]
    names = list(dict.fromkeys(run["problem"] for run in runs))
    methods = list(dict.fromkeys(run["method"] for run in runs))

    def median(problem: str, method: str, n: int) -> float:
        return statistics.median(
            run["regrets"][n - 1] for run in runs if (run["problem"], run["method"]) == (problem, method)
        )

    lines = [f"{'problem':<16}{'method':<14}" + "".join(f"{f'n={n}':>9}" for n in points) + "   failed  cpu s/run"]
    for name in names:
        scale = {n: median(name, "random", n) if "random" in methods else 1.0 for n in points}
        for method in methods:
            mine = [run for run in runs if (run["problem"], run["method"]) == (name, method)]
            cells = "".join(f"{median(name, method, n) / scale[n]:>9.3f}" for n in points)
            failed = statistics.mean(run["failures"] for run in mine)
            seconds = statistics.median(run["cpu_seconds"] for run in mine)
            lines.append(f"{name:<16}{method:<14}{cells}{failed:>9.1f}{seconds:>11.1f}")
    return "\n".join(lines)


def plot(record: dict[str, Any], path: Path) -> None:
    """Median regret against evaluations, a panel for each problem, a line for each method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    runs = record["runs"]
    names = list(dict.fromkeys(run["problem"] for run in runs))
    methods = list(dict.fromkeys(run["method"] for run in runs))
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(3.2 * columns, 2.6 * rows), squeeze=False)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for name, axis in zip(names, axes.flat, strict=False):
        for method in methods:
            curves = [run["regrets"] for run in runs if (run["problem"], run["method"]) == (name, method)]
            width = 2.2 if method == "llamatune" else 1.2
            median = np.maximum(np.nanmedian(np.array(curves), axis=0), 1e-6)
            axis.plot(range(1, len(median) + 1), median, label=method, linewidth=width)
        axis.set_yscale("log")
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("evaluations", fontsize=8)
        axis.tick_params(labelsize=7)
    axes[0, 0].set_ylabel("regret, median of seeds", fontsize=8)
    axes[0, 0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def environment() -> dict[str, str]:
    packages = ("torch", "gpytorch", "botorch", "optuna", "numpy", "scipy")
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU used",
        "python": platform.python_version(),
        **versions,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--evals", type=int, default=40)
    parser.add_argument("--problems", nargs="+", default=problem_names())
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings for llamatune")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "regret.json")
    parser.add_argument("--plot", action="store_true", help="draw the picture too (needs matplotlib)")
    options = parser.parse_args(arguments)

    settings = dict(item.split("=", 1) for item in options.set)
    methods = [m for m in options.methods if not m.startswith("optuna") or importlib.util.find_spec("optuna")]
    for missing in sorted(set(options.methods) - set(methods)):
        print(f"{missing}: not installed, left out")
    runs = []
    with ProcessPoolExecutor(options.workers, initializer=in_worker) as pool:
        jobs = [
            pool.submit(run_one, problem, method, seed, options.evals, settings if method == "llamatune" else {})
            for problem in options.problems
            for method in methods
            for seed in range(options.seeds)
        ]
        for job in as_completed(jobs):
            runs.append(job.result())
            print(f"\r{len(runs)} of {len(jobs)} runs", end="", file=sys.stderr)
    print(file=sys.stderr)
    order = [(p, m) for p in options.problems for m in methods]
    runs.sort(key=lambda run: (order.index((run["problem"], run["method"])), run["seed"]))
    record = {"environment": environment(), "evals": options.evals, "seeds": options.seeds, "runs": runs}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    own = [run for run in runs if run["problem"] not in recorded.MAKERS]  # other people's data stay where they are
    options.output.write_text(json.dumps({**record, "runs": own}) + "\n")
    print(table(runs, options.evals))
    if options.plot:
        plot(record, options.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
