"""What are past studies worth? Regret with and without them, also where they mislead.

    OMP_NUM_THREADS=1 python benchmarks/transfer.py                          # all targets, 5 seeds
    OMP_NUM_THREADS=1 python benchmarks/transfer.py --families classifying --seeds 1 --evals 6 --sources right

    steplaw        pre-training over learning rate and batch size, 11 pairs of size and tokens, of which each is the
                   target once (arXiv:2503.04715); where ``shared/data`` is
    pretraining, classifying, adapting
                   six simulated tunes each, whose best parameters move with size, data and method (``families.py``)

Each target has five others of its family as past studies, with 30 random trials each. ``--sources`` says what became of
them: "right"; "sizeless", without their sizes; "shifted", learning rates times 10^1.5; "shuffled" and "inverted", their
outcomes. "cold" is the search without any. Instead of past studies, "believed" has a belief about the learning rate,
with the default spread; others are half a decade or 1.5 decades off. "rgpe" and "portfolio" are other ways to use the
right past studies (``engine/transfer.py``). Pairs of target and seed are the same for all.

A regret is that of the best value so far, as a share of what the best of 20 random trials has in the median, and no
more than 10.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from recorded import DATA, recorded_value
from scores import markdown

from llamatune_torch import Integer, LlamaTune, Outcome, Real, SearchSpace
from llamatune_torch.families import FAMILIES
from llamatune_torch.past import PastStudy, PastTrial
from llamatune_torch.space import Params
from llamatune_torch.trial import Direction

MARKS = (1, 2, 3, 5, 7, 10, 15, 20)
NUM_SOURCES, NUM_TRIALS = 5, 30
WORST = 10.0


#: Beliefs about the learning rate, as factors of the best one.
BELIEFS = {"believed": 1.0, "half a decade off": 10**0.5, "half a decade below": 10**-0.5, "1.5 decades off": 10**1.5}


WAYS = ("rgpe", "portfolio")
SOURCES = ("cold", "right", "sizeless", "shifted", "shuffled", "inverted", *WAYS, *BELIEFS)


class Target(NamedTuple):
    """One tune: ``start`` begins it anew, and returns what evaluates parameters, with noise from a generator."""

    name: str
    space: SearchSpace
    direction: Direction
    context: dict[str, float]
    start: Callable[[np.random.Generator], Callable[[Params], float]]
    regret: Callable[[Params, float], float]  # of parameters, or of the value that was seen there
    sample: Callable[[np.random.Generator, int], list[Params]]
    best_rate: float


def _simulated(family: str) -> list[Target]:
    targets = []
    for problem in FAMILIES[family]:

        def sample(generator: np.random.Generator, n: int, space: SearchSpace = problem.space) -> list[Params]:
            return space.decode_all(space.snap(generator.random((n, space.dim))))

        def regret(params: Params, value: float, problem: Any = problem) -> float:
            return float(problem.regret(params))

        def start(generator: np.random.Generator, problem: Any = problem) -> Callable[[Params], float]:
            return partial(problem.evaluate, generator=generator)

        targets.append(Target(problem.name, problem.space, problem.direction, dict(problem.context), start,
                              regret, sample, problem.at["learning_rate"]))  # fmt: skip
    return targets


def _steplaw() -> list[Target]:
    lines = (DATA / "steplaw_dense_part.csv").read_text().splitlines()
    table = [dict(zip(lines[0].split(","), map(float, line.split(",")), strict=True)) for line in lines[1:]]
    rates, batches = ([row[key] for row in table] for key in ("lr", "batch_size"))
    space = SearchSpace(
        {
            "learning_rate": Real(min(rates), max(rates), prior="log-uniform"),
            "batch_size": Integer(int(min(batches)), int(max(batches)), prior="log-uniform"),
        }
    )
    targets = []
    for size in sorted({(row["n_params"], row["n_tokens"]) for row in table}):
        rows = [row for row in table if (row["n_params"], row["n_tokens"]) == size]
        runs = [{"learning_rate": row["lr"], "batch_size": int(row["batch_size"])} for row in rows]
        losses = [row["loss"] for row in rows]

        def sample(generator: np.random.Generator, n: int, runs: list[Params] = runs) -> list[Params]:
            return [runs[i] for i in generator.permutation(len(runs))[:n]]

        def start(
            generator: np.random.Generator, runs: list[Params] = runs, losses: list[float] = losses
        ) -> Callable[[Params], float]:
            return recorded_value(space, runs, losses)

        def regret(params: Params, value: float, best: float = min(losses)) -> float:
            return value - best

        context = {"parameters": size[0], "tokens": size[1]}
        name, best = f"steplaw {size[0]:.2g} {size[1]:.2g}", min(rows, key=lambda row: row["loss"])
        targets.append(Target(name, space, "minimize", context, start, regret, sample, best["lr"]))
    return targets


@cache
def targets_of(family: str) -> list[Target]:
    return _steplaw() if family == "steplaw" else _simulated(family)


def past_of(target: Target, sources: str, generator: np.random.Generator) -> PastStudy:
    """Thirty random trials of a tune as a past study, or what became of them."""
    evaluate = target.start(generator)
    trials: list[tuple[Params, float | None]] = []
    for params in target.sample(generator, NUM_TRIALS):
        try:
            trials.append((params, evaluate(params)))
        except FloatingPointError:
            trials.append((params, None))
    if sources == "shuffled":
        order = generator.permutation(len(trials))
        trials = [(params, trials[i][1]) for (params, _), i in zip(trials, order, strict=True)]
    if sources == "inverted":
        # What failed is best, then.
        worst = max(-value for _, value in trials if value is not None)
        trials = [(params, worst if value is None else -value) for params, value in trials]
    if sources == "shifted":
        trials = [({**params, "learning_rate": params["learning_rate"] * 10**1.5}, value) for params, value in trials]
    context = {} if sources == "sizeless" else target.context
    return PastStudy(target.name, target.direction, tuple(PastTrial(*trial) for trial in trials), context)


@cache
def scale_of(family: str, i: int) -> float:
    """What the best of 20 random trials has as regret, in the median."""
    target, generator = targets_of(family)[i], np.random.default_rng(5)
    evaluate, regrets = target.start(generator), []
    for params in target.sample(generator, 2000):
        try:
            regrets.append(target.regret(params, evaluate(params)))
        except FloatingPointError:
            regrets.append(math.inf)
    return statistics.median(float(generator.permutation(regrets)[:20].min()) for _ in range(400))


def run_one(
    family: str,
    i: int,
    seed: int,
    sources: str,
    evals: int,
    settings: dict[str, Any],
    q: int = 1,
    limited: bool = False,
) -> dict[str, Any]:
    """One search: the normalised regret after each evaluation, failed runs, and seconds of an ask."""
    if sources in WAYS:
        settings = {**settings, "transfer": sources}
    torch.set_num_threads(1)
    family_targets = targets_of(family)
    target, generator = family_targets[i], np.random.default_rng([11, seed, i])
    others = [family_targets[j] for j in generator.permutation(len(family_targets)) if j != i][:NUM_SOURCES]
    space = target.space
    if sources in BELIEFS:
        rate: Any = space["learning_rate"]
        value = min(max(target.best_rate * BELIEFS[sources], rate.low), rate.high)
        space = SearchSpace({**space.parameters, "learning_rate": replace(rate, belief=value)})
    alone = sources == "cold" or sources in BELIEFS
    past = [] if alone else [past_of(other, sources, generator) for other in others]
    context = target.context if past and sources != "sizeless" else {}
    noise = np.random.default_rng([12, seed, i])
    evaluate = target.start(noise)
    search = LlamaTune(space, direction=target.direction, max_evals=evals, seed=seed, progress=False, past=past,
                       context=context, constraints={"memory_gb": "<= 8"} if limited else (), **settings)  # fmt: skip
    least, trace, failures, seconds, seen = math.inf, [], 0, 0.0, -math.inf
    sign = 1.0 if target.direction == "maximize" else -1.0
    for n in range(evals):
        if n % q == 0:
            begun = time.process_time()
            batch = search.ask(min(q, evals - n))
            seconds += time.process_time() - begun
        trial = batch[n % q]
        try:
            value = evaluate(trial.params)
        except FloatingPointError:
            failures += 1
            search.tell(trial, Outcome.failure("diverged"))
        else:
            memory = trial.params["batch_size"] / 4  # GB: batches of up to 32 are allowed
            search.tell(trial, Outcome(value, outcomes={"memory_gb": memory}))
            if limited and memory > 8:
                failures += 1
            elif sign * value > seen:  # what was seen decides which run counts
                seen, least = sign * value, target.regret(trial.params, value)
        trace.append(min(least / scale_of(family, i), WORST))
    return {"family": family, "target": i, "seed": seed, "sources": sources, "regrets": trace, "failures": failures,
            "seconds": seconds / evals}  # fmt: skip


def report(records: Sequence[dict[str, Any]], evals: int) -> str:
    """Two tables: regrets by what became of the sources, and by family."""
    marks = [mark for mark in MARKS if mark <= evals]
    rows = [["sources", *(f"at {mark}" for mark in marks), "failed", "CPU s an ask"]]
    families = list(dict.fromkeys(record["family"] for record in records))
    for family in (*families, "all"):
        for sources in SOURCES:
            own = [r for r in records if r["sources"] == sources and family in (r["family"], "all")]
            if own:
                at = [[record["regrets"][mark - 1] for record in own] for mark in marks]
                told = [f"{statistics.mean(values):.3g} ({statistics.median(values):.2g})" for values in at]
                failures = statistics.mean(record["failures"] for record in own)
                seconds = statistics.mean(record["seconds"] for record in own)
                rows.append([f"{family}: {sources}", *told, f"{failures:.1f}", f"{seconds:.3f}"])
    return markdown(rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*(["steplaw"] if DATA.is_dir() else []), *FAMILIES]
    parser.add_argument("--families", nargs="+", default=names, choices=names)
    usual = [name for name in SOURCES if name not in (*BELIEFS, *WAYS)]
    parser.add_argument("--sources", nargs="+", default=usual, choices=SOURCES)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--targets", type=int, default=99, help="of each family at most")
    parser.add_argument("--evals", type=int, default=20)
    parser.add_argument("--limited", action="store_true", help="8 GB for batch / 4; only what keeps that counts")
    parser.add_argument("--q", type=int, default=1, help="evaluations asked for at once, and told before the next")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="arguments of LlamaTune")
    parser.add_argument("--json", type=Path, help="a file for all runs")
    options = parser.parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    settings = {name: json.loads(value) for name, _, value in (item.partition("=") for item in options.set)}
    jobs = [
        (family, i, seed, sources, options.evals, settings, options.q, options.limited)
        for seed in range(options.seeds)
        for family in options.families
        for i in range(min(options.targets, len(targets_of(family))))
        for sources in options.sources
    ]
    if options.workers == 1:
        records = [run_one(*job) for job in jobs]
    else:
        with ProcessPoolExecutor(options.workers) as pool:
            records = list(pool.map(run_one, *zip(*jobs, strict=True)))
    print(report(records, options.evals))
    print(f"{platform.machine()}, torch {torch.__version__}, Python {platform.python_version()}, {options.seeds} seeds")
    if options.json:
        options.json.write_text(json.dumps(records))


if __name__ == "__main__":
    main()
