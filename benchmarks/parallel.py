"""How many more evaluations do eight workers need than one, and how much less time?

Asynchronous workers choose with less knowledge: seven trials are running and have no value yet. This simulates them:
each evaluation takes a random time (log-normal, median 1, a spread of e^0.5), a worker that is done is given the next
trial at once, and what is counted is simulated time, so that nobody sleeps. The serial search has one worker.

    python benchmarks/parallel.py                 # runs what is missing in results/parallel.jsonl, then the table
    python benchmarks/parallel.py --report        # the table only

For each problem: the median regret over the seeds of the serial search after ``n`` evaluations is the target; how many
finished evaluations, and how much time, until the median regret of the parallel search is no larger. Decisions take no
simulated time. ``closest``: the smallest distance between two points that were running at the same time, as the largest
difference of a coordinate in the unit cube, over all seeds.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import os
import statistics
import sys
from itertools import product
from pathlib import Path
from typing import Any

import landscapes
import numpy as np
from scores import first_at_most, markdown, median_curve

from llamatune_torch import LlamaTune, Outcome, problems
from llamatune_torch.problems import Problem

RESULTS = Path(__file__).parent / "results" / "parallel.jsonl"
WORKERS = 8
CHOSEN = (
    problems.branin, problems.hartmann6, problems.mixed, problems.fine_tuning, problems.memory_limited,
    landscapes.fine_tuning_small, landscapes.mixed_large, landscapes.lora_memory,
)  # fmt: skip
PROBLEMS = {problem.name: problem for problem in CHOSEN}
TARGETS = (20, 30, 40)

Run = dict[str, Any]


def simulate(problem: Problem, workers: int, seed: int, evals: int) -> Run:
    """One search: ``regrets`` as in ``regret.py``, by finished evaluations, and ``ends``, when each finished."""
    noise, clock = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    # Of its own for each evaluation, in the order they start: the same for any number of workers.
    durations = np.exp(0.5 * clock.standard_normal(evals))
    tuner = LlamaTune(problem.space, max_evals=evals, direction=problem.direction, seed=seed)
    running: list[tuple[float, int]] = []  # when each ends, and its number
    now, closest, best = 0.0, math.inf, -math.inf
    ends: list[float] = []
    regrets: list[list[float]] = []
    while len(ends) < evals:
        while len(running) < workers and len(tuner.study.trials) < evals:
            trial = tuner.ask()
            pending = problem.space.encode_all([other.params for other in tuner.study.pending])
            if len(pending) > 1:  # the new one is the last
                closest = min(closest, float(np.abs(pending[:-1] - pending[-1]).max(axis=-1).min()))
            heapq.heappush(running, (now + durations[trial.number], trial.number))
        now, number = heapq.heappop(running)
        ends.append(now)
        trial = tuner.study.trials[number]
        try:
            value = problem.evaluate(trial.params, noise)
        except MemoryError:
            tuner.tell(trial, Outcome.failure("out of memory"))
            continue
        tuner.tell(trial, value)
        merit = value if problem.direction == "maximize" else -value
        if merit > best:  # what is seen decides which one is best, what is true how good it is
            best = merit
            regrets.append([len(ends), float(f"{problem.regret(trial.params):.6g}")])
    run = {"problem": problem.name, "workers": workers, "seed": seed, "evals": evals, "regrets": regrets}
    return run | {"ends": [round(end, 3) for end in ends], "closest": None if math.isinf(closest) else closest}


def compare(runs: list[Run], problem: str, at: int) -> tuple[float, float] | None:
    """How many times the evaluations, and the time, of the serial search; one more than all where it is not reached."""
    one = [run for run in runs if run["problem"] == problem and run["workers"] == 1]
    seeds = {run["seed"] for run in one}
    many = [run for run in runs if run["problem"] == problem and run["workers"] > 1 and run["seed"] in seeds]
    if not one or not many or min(run["evals"] for run in one) < at:
        return None
    serial, parallel = median_curve(one, at), median_curve(many, min(run["evals"] for run in many))
    needed = first_at_most(serial, serial[-1]), first_at_most(parallel, serial[-1])
    last = min(needed[1], len(parallel))
    took = [statistics.median(run["ends"][n - 1] for run in group) for group, n in ((one, needed[0]), (many, last))]
    return needed[1] / needed[0], took[1] / took[0]


def table(runs: list[Run]) -> str:
    """A row for each problem, and the geometric mean; evaluations and time, at each target."""
    names = list(dict.fromkeys(run["problem"] for run in runs))
    points = [n for n in TARGETS if n <= max((run["evals"] for run in runs if run["workers"] == 1), default=0)]
    rows = [
        ["problem", "seeds", *(f"evaluations, n={n}" for n in points), *(f"time, n={n}" for n in points), "closest"]
    ]
    found: dict[tuple[int, int], list[float]] = {}
    for name in names:
        cells = {n: compare(runs, name, n) for n in points}
        for n, cell in cells.items():
            for i in (0, 1) if cell else ():
                found.setdefault((i, n), []).append(cell[i])
        shown = ["-" if cells[n] is None else f"{cells[n][i]:.2f}" for i in (0, 1) for n in points]
        apart = [run["closest"] for run in runs if run["problem"] == name and run["closest"] is not None]
        seeds = {run["seed"] for run in runs if run["problem"] == name and run["workers"] > 1}
        rows.append([name, str(len(seeds)), *shown, f"{min(apart):.3f}" if apart else "-"])
    means = [statistics.geometric_mean(found[i, n]) if (i, n) in found else math.nan for i in (0, 1) for n in points]
    rows.append(["geometric mean", "", *(f"**{mean:.2f}**" for mean in means), ""])
    return markdown(rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--evals", type=int, default=40, help="of the serial search; the parallel one has half as many more"
    )
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--output", type=Path, default=RESULTS, help="the file of runs; what is in it is not run again")
    parser.add_argument("--report", action="store_true", help="no new runs")
    options = parser.parse_args(arguments)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.touch()
    runs = [json.loads(line) for line in options.output.read_text().splitlines()]
    done = {(run["problem"], run["workers"], run["seed"]) for run in runs}
    jobs = list(product(range(options.seeds), options.problems, (1, WORKERS)))
    for count, (seed, name, workers) in enumerate([] if options.report else jobs, start=1):
        if (name, workers, seed) in done:
            continue
        evals = options.evals if workers == 1 else options.evals * 3 // 2
        runs.append(simulate(PROBLEMS[name], workers, seed, evals))
        with options.output.open("a") as file:
            file.write(json.dumps(runs[-1]) + "\n")
        if sys.stderr.isatty():
            print(f"\r{count} of {len(jobs)} runs", end="", file=sys.stderr)
    print(table([run for run in runs if run["problem"] in options.problems]))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
