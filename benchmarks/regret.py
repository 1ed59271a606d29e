"""How good is the best of so many evaluations? This engine next to random search and its peers.

    python benchmarks/regret.py                               # what is installed here, 10 seeds, 50 evaluations
    python benchmarks/regret.py --seeds 2 --evals 20 --problems branin mixed --methods llamatune random
    python benchmarks/regret.py --methods llamatune --q 4 --append
    benchmarks/.venv-peers/bin/python benchmarks/regret.py --methods ax smac hebo skopt --append   # install_peers.sh
    python benchmarks/regret.py --report --plot               # no new runs: tables and picture of those there are

One run is one method on one problem from one seed. Each is written to ``benchmarks/results/regret.jsonl`` as soon as
it is done, so that an interrupted benchmark goes on with ``--append``: runs in the file are kept and not repeated.
Without it the chosen methods are measured anew on the chosen problems, and all other runs are kept. Medians, ranks
and what they mean: ``scores.py``; they go to ``regret.json``. Runs on recorded problems stay in a file beside it
that is not committed: other people's data are theirs to publish. Peers and how they are set up: ``peers.py``.

With ``--q 4`` four evaluations are asked for and told together. Seeds are paired: the noise of the ``k``-th
evaluation is the same for all methods. ``cpu s`` is what all decisions of a run took, without the evaluations.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import multiprocessing
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import landscapes
import numpy as np
import peers
import recorded
import sklearn_problems
import torch
from scores import CHECKPOINTS, Run, Scores, evaluations_ratio, median_curve, tables

from llamatune_torch import LlamaTune, Outcome, large, problems
from llamatune_torch.problems import Problem
from llamatune_torch.space import Params

RESULTS = Path(__file__).parent / "results" / "regret.jsonl"
PROBLEMS = {problem.name: problem for problem in (*problems.ALL, *landscapes.ALL, *large.ALL, *sklearn_problems.ALL)}
LIMIT = 900
FAILURES = (MemoryError, FloatingPointError)  # what a problem raises where training would fail


class Llamatune:
    """This engine; ``settings`` are arguments of ``LlamaTune``."""

    def __init__(self, problem: Problem, evals: int, seed: int, **settings: Any) -> None:
        self.tuner = LlamaTune(
            problem.space, max_evals=evals, direction=problem.direction, seed=seed, progress=False, **settings
        )
        self.asked: list[Any] = []

    def ask(self, q: int) -> list[Params]:
        self.asked = [self.tuner.ask()] if q == 1 else self.tuner.ask(q)
        return [dict(trial.params) for trial in self.asked]

    def tell(self, values: list[peers.Value]) -> None:
        for trial, value in zip(self.asked, values, strict=True):
            self.tuner.tell(trial, Outcome.failure("out of memory") if value is None else value)

    def recommended(self) -> Params | None:
        return dict(self.tuner.recommend().params)


METHODS: dict[str, Callable[..., peers.Searcher]] = {"llamatune": Llamatune, **peers.METHODS}


def recommended_regret(searcher: peers.Searcher, problem: Problem, best_seen: Params | None) -> float:
    """How far what a method would hand over now truly is from the optimum: its own word, else what looks best."""
    if best_seen is None:
        return math.inf
    try:
        return problem.regret(searcher.recommended() or best_seen)
    except FAILURES:
        return math.inf


def problem_named(name: str) -> Problem:
    # A recorded problem remembers which of its runs were drawn, so each search gets its own.
    return recorded.MAKERS[name]() if name in recorded.MAKERS else PROBLEMS[name]


def problem_names() -> list[str]:
    return [*PROBLEMS, *(recorded.MAKERS if recorded.DATA.is_dir() else ())]


def run_one(
    problem_name: str, method: str, seed: int, evals: int = 50, q: int = 1, settings: dict[str, Any] | None = None
) -> Run:
    """One search, as a record of plain numbers.

    ``regrets`` holds ``[n, regret]`` for each ``n`` at which another evaluation began to look best, ``recommended``
    the regret of what the method would hand over, at the checkpoints that lie before the next batch. Numbers are left
    out while nothing has worked. ``error`` says in one line what broke the method, if anything did; a run of more
    than ``LIMIT`` seconds of CPU time counts as that.
    """
    problem = problem_named(problem_name)
    generator = np.random.default_rng(seed)
    sign = 1.0 if problem.direction == "maximize" else -1.0
    best_value, best_seen = -math.inf, None
    regrets: list[list[float]] = []
    recommended: list[list[float]] = []
    n = failures = 0
    seconds, error = 0.0, None
    try:
        limit_time()
        started = time.process_time()
        searcher = METHODS[method](problem, evals, seed, **(settings or {}))
        seconds += time.process_time() - started
        while n < evals:
            started = time.process_time()
            rows = searcher.ask(min(q, evals - n))
            seconds += time.process_time() - started
            values: list[peers.Value] = []
            for params in rows:
                n += 1
                value = seen(problem, params, generator)
                values.append(value)
                if value is None:
                    failures += 1
                elif sign * value > best_value:
                    # What was seen decides which evaluation counts; what is true decides how good it is.
                    best_value, best_seen = sign * value, params
                    regrets.append([n, rounded(problem.regret(params))])
            started = time.process_time()
            searcher.tell(values)
            seconds += time.process_time() - started
            for checkpoint in {*CHECKPOINTS, evals} & set(range(n, n + min(q, max(evals - n, 1)))):
                handed_over = recommended_regret(searcher, problem, best_seen)
                if math.isfinite(handed_over):
                    recommended.append([checkpoint, rounded(handed_over)])
    except Exception as broken:  # a method that breaks becomes a row that says so, and the others go on
        error = f"{type(broken).__name__}: {' '.join(str(broken).split())[:160]}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return {
        "problem": problem_name,
        "method": method,
        "q": q,
        "seed": seed,
        "evals": evals,
        "regrets": regrets,
        "recommended": recommended,
        "failures": failures,
        "cpu_seconds": round(seconds, 2),
        "with": versions(method),
        **({"error": error} if error else {}),
    }


def limit_time() -> None:
    """Lets a run that never ends, end as an error: one peer's endless loop must not hold up all others."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"more than {LIMIT} s of CPU time for one run")

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, LIMIT)


def seen(problem: Problem, params: Params, generator: np.random.Generator) -> peers.Value:
    """What one evaluation shows; ``None`` if it fails."""
    try:
        return problem.evaluate(params, generator)
    except FAILURES:
        return None


def rounded(value: float) -> float:
    return float(f"{value:.5g}") + 0.0  # never -0.0


def versions(method: str) -> str:
    import sklearn

    common = f"torch {torch.__version__}, numpy {np.__version__}, scikit-learn {sklearn.__version__}"
    return f"{peers.version(method)}, {common}, Python {platform.python_version()}"


def read_runs(path: Path) -> list[Run]:
    """The runs in a file; a last line that was cut off in writing is dropped from the file as well."""
    if not path.exists():
        return []
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    return [json.loads(line) for line in whole.splitlines()]


def beside(path: Path) -> Path:
    """Where the runs on recorded problems go."""
    return path.with_name(f"{path.stem}.recorded.jsonl")


def key(run: Run) -> tuple[Any, ...]:
    return run["problem"], run["method"], run["q"], run["seed"], run["evals"]


def write_anew(path: Path, runs: Iterable[Run]) -> None:
    path.write_text("".join(json.dumps(run) + "\n" for run in runs))


def in_worker() -> None:
    """One thread for each of the processes that run side by side."""
    torch.set_num_threads(1)


def executed(jobs: list[tuple[Any, ...]], workers: int) -> Iterator[Run]:
    """The runs, as they finish; in this process for one worker."""
    if workers == 1:
        yield from (run_one(*job) for job in jobs)
        return
    # Fresh processes: what one library sets up in threads must not be inherited half done.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=in_worker) as pool:
        for future in as_completed([pool.submit(run_one, *job) for job in jobs]):
            yield future.result()


def perform(options: argparse.Namespace) -> None:
    """Makes the runs that are asked for, and writes each down when it is done."""
    installed = [method for method in options.methods if peers.version(method)]
    for missing in sorted(set(options.methods) - set(installed)):
        print(f"{missing}: not installed for this Python, no runs (benchmarks/install_peers.sh)", file=sys.stderr)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    files = (options.output, beside(options.output))
    kept = {path: read_runs(path) for path in files}
    if not options.append:
        for path, runs in kept.items():
            kept[path] = [
                run
                for run in runs
                if not (run["problem"] in options.problems and run["method"] in installed and run["q"] == options.q)
            ]
            write_anew(path, kept[path])
    done = {key(run) for runs in kept.values() for run in runs}
    settings = dict(setting(item) for item in options.set)
    jobs = [
        (problem, method, seed, options.evals, options.q, settings if method == "llamatune" else {})
        for seed in range(max(options.seeds, options.random_seeds))  # one seed after another: all are equally far
        for problem in options.problems
        for method in installed
        if seed < (options.random_seeds if method == "random" else options.seeds)
        if (problem, method, options.q, seed, options.evals) not in done
    ]
    for count, run in enumerate(executed(jobs, min(options.workers, max(len(jobs), 1))), start=1):
        path = beside(options.output) if run["problem"] in recorded.MAKERS else options.output
        with path.open("a") as file:
            file.write(json.dumps(run) + "\n")
        if sys.stderr.isatty() or count == len(jobs):
            print(f"\r{count} of {len(jobs)} runs", end="" if count < len(jobs) else "\n", file=sys.stderr)


def setting(item: str) -> tuple[str, Any]:
    """``NAME=VALUE`` with a JSON value, or else a string."""
    name, _, text = item.partition("=")
    try:
        return name, json.loads(text)
    except json.JSONDecodeError:
        return name, text


def summary(all_scores: dict[int, Scores], runs: list[Run]) -> dict[str, Any]:
    """What is committed of all runs: medians, normalised regrets, ranks, by ``q``, method and evaluations."""
    found: dict[str, Any] = {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU used",
        "with": sorted({f"{run['method']}: {run['with']}" for run in runs}),
    }
    for q, scores in all_scores.items():
        ranks = {n: scores.mean_ranks(n) for n in scores.points}
        found[f"q={q}"] = {
            method: {
                "mean_rank": {n: ranks[n].get(method) for n in scores.points},
                "mean_and_median_normalised_regret": {n: scores.aggregate(method, n) for n in scores.points},
                "median_regret": {
                    problem: {n: finite(scores.median(problem, method, n)) for n in scores.points}
                    for problem in scores.problems
                },
                "errors": {p: error for p in scores.problems if (error := scores.error(p, method))},
            }
            for method in scores.methods
        }
    return found


def finite(value: float | None) -> float | None:
    return None if value is None or math.isinf(value) else value


def report(options: argparse.Namespace) -> None:
    """Tables of all runs there are, on the chosen problems."""
    runs = [run for path in (options.output, beside(options.output)) for run in read_runs(path)]
    runs = [run for run in runs if run["problem"] in options.problems]
    order = {name: i for i, name in enumerate([*METHODS, *problem_names()])}
    runs.sort(key=lambda run: (order[run["problem"]], order[run["method"]], run["q"], run["seed"]))
    noisy = {name for name, problem in PROBLEMS.items() if problem.noise}
    all_scores = {q: Scores(runs, q, noisy) for q in sorted({run["q"] for run in runs})}
    printed = [tables(scores, "sequential" if q == 1 else f"q={q}") for q, scores in all_scores.items()]
    printed += list(compared(all_scores))
    print("\n\n".join(printed))
    options.output.with_suffix(".json").write_text(json.dumps(summary(all_scores, runs), indent=1) + "\n")
    if options.plot and 1 in all_scores:
        plot(all_scores[1], options.output.with_suffix(".png"))


def compared(all_scores: dict[int, Scores]) -> Iterator[str]:
    """How many more evaluations a batched search needs."""
    for q, scores in all_scores.items():
        if q == 1 or 1 not in all_scores:
            continue
        for method in scores.methods:
            ratios = {n: evaluations_ratio(all_scores[1], scores, method, n) for n in scores.points}
            told = ", ".join(f"n={n}: {ratio:.2f}" for n, ratio in ratios.items() if ratio)
            if told and method != "random":
                yield f"{method}, q={q}: evaluations for the sequential run's regret at n, times those it took: {told}"


def plot(scores: Scores, path: Path) -> None:
    """Median regret of what looks best against evaluations, a panel for each problem, a line for each method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(4, len(scores.problems))
    rows = -(-len(scores.problems) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(3.2 * columns, 2.6 * rows), squeeze=False)
    for axis in axes.flat[len(scores.problems) :]:
        axis.set_visible(False)
    for name, axis in zip(scores.problems, axes.flat, strict=False):
        for method in scores.methods:
            group = [run for run in scores.groups.get((name, method), []) if not run.get("error")]
            if not group:
                continue
            median = np.array(median_curve(group, min(run["evals"] for run in group)))
            width = 2.2 if method == "llamatune" else 1.2
            shown = np.where(np.isfinite(median), np.maximum(median, 1e-6), np.nan)
            axis.plot(range(1, len(median) + 1), shown, label=method, linewidth=width, color=color(method))
        axis.set_yscale("log")
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("evaluations", fontsize=8)
        axis.tick_params(labelsize=7)
    axes[0, 0].set_ylabel("regret, median of seeds", fontsize=8)
    axes[0, 0].legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def color(method: str) -> str:
    return f"C{list(METHODS).index(method)}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--random-seeds", type=int, default=50, help="random search is the scale, and cheap")
    parser.add_argument("--evals", type=int, default=50)
    parser.add_argument("--q", type=int, default=1, help="evaluations asked for and told together")
    parser.add_argument("--problems", nargs="+", default=problem_names(), choices=problem_names())
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="arguments of LlamaTune")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the file of runs, .jsonl")
    parser.add_argument("--append", action="store_true", help="keep and do not repeat runs that are in the file")
    parser.add_argument("--report", action="store_true", help="no new runs")
    parser.add_argument("--plot", action="store_true", help="draw the picture too (needs matplotlib)")
    options = parser.parse_args(arguments)
    # For the worker processes: with matrices as small as these, a second thread only waits.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if not recorded.DATA.is_dir():
        print("recorded problems: no shared/data next to this checkout, left out", file=sys.stderr)
    if not options.report:
        perform(options)
    report(options)


if __name__ == "__main__":
    main()
