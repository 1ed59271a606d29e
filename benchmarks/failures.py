"""How many runs fail next to a wall, and how good is the best of the others? Next to random search and Optuna.

    OMP_NUM_THREADS=1 python benchmarks/failures.py
    OMP_NUM_THREADS=1 python benchmarks/failures.py --problems wall6 --seeds 1 --evals 15

    memory_limited    six parameters, a wall in the batch size; the best leans on it
    lora_memory       five, a wall through batch x length and rank, and whether checkpointing is on
    wall6             six, a wall through batch x length and rank; the best is near it
    pretraining       five, a wall through width, depth, batch and length of a model that is trained from nothing
    divergence        five: the rate at which a run diverges depends on optimizer, depth, warm-up and beta2

The last two had no part in the choice of the engine; pretraining had one in how cautious it is with estimates. Three
to four tenths of each space fail. Peers are those of ``peers.py``; a failure is told as each of them says, and to this
engine as out of memory or diverged. "this, with estimates" knows the memory of wall6 and of pretraining roughly before
the first run (``engine/estimates.py``). Seeds are paired as in ``regret.py``. The best value is what the run that
looked best is worth without noise. Each run is printed at its end.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import platform
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import landscapes
import numpy as np
import peers
import torch
from regret import FAILURES, Llamatune
from scores import markdown

from llamatune_torch import Categorical, Integer, Outcome, Real, SearchSpace, problems
from llamatune_torch.problems import Problem
from llamatune_torch.space import Params

FIRST = 10  # trials in which a wall may be looked for


def _wall6_memory(p: Params) -> float:
    return float(6 + 0.7 * p["batch_size"] * p["sequence_length"] / 1024 + 0.03 * p["rank"])


def _wall6(p: Params) -> float:
    gigabytes = _wall6_memory(p)
    if gigabytes > 24:
        raise MemoryError(f"out of memory: {gigabytes:.1f} GB needed, 24 GB there")
    off = math.log10(p["learning_rate"] / (2e-4 * (p["batch_size"] / 16) ** 0.3))
    return float(
        0.8
        - (0.1 if off > 0 else 0.04) * off**2
        - 0.006 * math.log2(p["batch_size"] * p["sequence_length"] / 20480) ** 2
        - 0.003 * math.log2(p["rank"] / 64) ** 2
        - 0.1 * (p["dropout"] - 0.1) ** 2
        - 0.02 * (p["warmup"] - 0.06) ** 2
    )


def _pretraining_memory(p: Params) -> float:
    weights = 12 * p["layers"] * p["hidden"] ** 2
    activations = p["layers"] * p["batch_size"] * p["sequence_length"] * (34 * p["hidden"] + 5 * p["sequence_length"])
    return float((16 * weights + activations) / 1e9)


def _pretraining(p: Params) -> float:
    weights, gigabytes = 12 * p["layers"] * p["hidden"] ** 2, _pretraining_memory(p)
    if gigabytes > 4:
        raise MemoryError(f"out of memory: {gigabytes:.1f} GB needed, 4 GB there")
    off = math.log10(p["learning_rate"] / (3e-3 * (p["hidden"] / 256) ** -0.5))
    # A larger model learns more, longer texts too, and a batch has its best size.
    return float(
        4.0
        - 0.15 * math.log2(weights / 1e6)
        - 0.05 * math.log2(p["sequence_length"] / 128)
        + 0.03 * math.log2(p["batch_size"] / 32) ** 2
        + (0.5 if off > 0 else 0.2) * off**2
    )


_STABLE = {"adamw": 1e-3, "lion": 2e-4, "sgd": 1e-1}  # learning rates that twelve layers bear
_HANDICAP = {"adamw": 0.0, "lion": 0.02, "sgd": 0.1}


def _divergence(p: Params) -> float:
    bears = _STABLE[p["optimizer"]] * (12 / p["layers"]) * (1 + 20 * p["warmup"]) * ((1 - p["beta2"]) / 0.01) ** 0.3
    off = math.log10(p["learning_rate"] / bears)
    if off > 0:
        raise FloatingPointError("the loss is nan")
    # A quarter of a decade below where it diverges, training is quickest; deeper is better, and warming up takes time.
    return float(
        2.0
        + 0.3 * (off + 0.25) ** 2
        - 0.1 * math.log2(p["layers"] / 12)
        + 1.5 * p["warmup"]
        + 0.05 * math.log10((1 - p["beta2"]) / 0.02) ** 2
        + _HANDICAP[p["optimizer"]]
    )


OWN = (
    Problem(
        name="wall6",
        space=SearchSpace(
            {
                "learning_rate": Real(1e-5, 1e-2, prior="log-uniform"),
                "batch_size": Integer(1, 128, prior="log-uniform"),
                "sequence_length": Integer(128, 8192, prior="log-uniform"),
                "rank": Integer(2, 256, prior="log-uniform"),
                "dropout": Real(0, 0.5),
                "warmup": Real(0, 0.3),
            }
        ),
        direction="maximize",
        optimum=0.8,
        true_value=_wall6,
        noise=0.002,
    ),
    Problem(
        name="pretraining",
        space=SearchSpace(
            {
                "learning_rate": Real(1e-4, 1e-1, prior="log-uniform"),
                "batch_size": Integer(4, 256, prior="log-uniform"),
                "sequence_length": Integer(128, 2048, prior="log-uniform"),
                "hidden": Integer(64, 1024, prior="log-uniform"),
                "layers": Integer(2, 24),
            }
        ),
        direction="minimize",
        optimum=2.8992,  # by search: 1,024 wide, 13 layers, batches of 19, 157 tokens
        true_value=_pretraining,
        noise=0.005,
    ),
    Problem(
        name="divergence",
        space=SearchSpace(
            {
                "learning_rate": Real(1e-5, 1.0, prior="log-uniform"),
                "optimizer": Categorical(["adamw", "lion", "sgd"]),
                "layers": Integer(4, 32),
                "warmup": Real(0, 0.2),
                "beta2": Real(0.9, 0.999),
            }
        ),
        direction="minimize",
        optimum=1.8585,  # adamw, 32 layers, no warm-up, beta2 .98
        true_value=_divergence,
        noise=0.005,
    ),
)
PROBLEMS = {problem.name: problem for problem in (problems.memory_limited, landscapes.lora_memory, *OWN)}


class This(Llamatune):
    """This engine, which is told what a failure was."""

    def __init__(self, problem: Problem, evals: int, seed: int) -> None:
        super().__init__(problem, evals, seed)
        self.reason = "diverged" if problem.name == "divergence" else "out of memory"

    def tell(self, values: list[peers.Value]) -> None:
        for trial, value in zip(self.asked, values, strict=True):
            self.tuner.tell(trial, Outcome.failure(self.reason) if value is None else value)


MEMORY = {"wall6": (_wall6_memory, 24.0), "pretraining": (_pretraining_memory, 4.0)}


class Warned(This):
    """This engine with estimates of memory: a sixth too low, and off by up to 5 % from place to place."""

    def __init__(self, problem: Problem, evals: int, seed: int) -> None:
        memory, limit = MEMORY[problem.name]

        def estimate(p: Params) -> float:
            return memory(p) / 1.2 * (1 + 0.05 * math.sin(3 * math.log(p["batch_size"])))

        limits = {"constraints": {"memory_gb": f"<= {limit}"}, "estimates": {"memory_gb": estimate}}
        Llamatune.__init__(self, problem, evals, seed, **limits)
        self.memory, self.limit = memory, limit

    def tell(self, values: list[peers.Value]) -> None:
        for trial, value in zip(self.asked, values, strict=True):
            outcomes = {"memory_gb": min(self.memory(dict(trial.params)), self.limit)}  # a run that fails has taken all
            failed = Outcome.failure("out of memory", outcomes=outcomes)
            self.tuner.tell(trial, failed if value is None else Outcome(value, outcomes=outcomes))


METHODS: dict[str, Any] = {
    "this": This,
    "this, with estimates": Warned,
    **{name: peers.METHODS[name] for name in ("random", "optuna-tpe", "optuna-gp")},
}


def run_one(name: str, method: str, seed: int, evals: int) -> dict[str, Any]:
    """One search: which of its trials failed, and the true value of the one that looked best."""
    problem, generator = PROBLEMS[name], np.random.default_rng(seed)
    sign = 1.0 if problem.direction == "maximize" else -1.0
    started = time.process_time()
    searcher = METHODS[method](problem, evals, seed)
    failed: list[int] = []
    best_seen, best = -math.inf, math.nan
    for n in range(evals):
        (params,) = searcher.ask(1)
        try:
            value = problem.evaluate(params, generator)
        except FAILURES:
            failed.append(n)
            searcher.tell([None])
            continue
        searcher.tell([value])
        if sign * value > best_seen:
            best_seen, best = sign * value, problem.true_value(params)
    seconds = time.process_time() - started
    return {"problem": name, "method": method, "seed": seed, "failed": failed, "best": best, "cpu": round(seconds, 1)}


def report(runs: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """A table: failed trials, also as a share after the first ten, and the best value, median and range of seeds."""
    rows = [["problem", "", "failed", f"after the first {FIRST}", "best, median", "range", "CPU s"]]
    later = max(options.evals - FIRST, 1)
    for name in options.problems:
        for method in options.methods:
            group = [run for run in runs if (run["problem"], run["method"]) == (name, method)]
            if not group:
                continue
            late = [sum(n >= FIRST for n in run["failed"]) for run in group]
            best = sorted(run["best"] for run in group)
            rows.append(
                [
                    name,
                    method,
                    f"{statistics.mean(len(run['failed']) for run in group):.1f} of {options.evals}",
                    f"{100 * statistics.mean(late) / later:.0f} %",
                    f"{statistics.median(best):.4f}",
                    f"{best[0]:.4f} to {best[-1]:.4f}",
                    f"{statistics.mean(run['cpu'] for run in group):.1f}",
                ]
            )
    return markdown(rows)


def executed(jobs: list[tuple[Any, ...]], workers: int) -> Iterator[dict[str, Any]]:
    """The runs, as they finish in order; in this process for one worker."""
    if workers == 1:
        torch.set_num_threads(1)
        yield from (run_one(*job) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(run_one, *zip(*jobs, strict=True))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--evals", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args(arguments)
    seeds = range(options.seeds)  # one after another: all problems are equally far
    pairs = itertools.product(options.problems, options.methods)
    known = [(name, method) for name, method in pairs if name in MEMORY or METHODS[method] is not Warned]
    jobs = [(*pair, s, options.evals) for s in seeds for pair in known]
    runs = []
    for run in executed(jobs, options.workers):
        print(json.dumps(run), flush=True)
        runs.append(run)
    print(report(runs, options))
    print(json.dumps({"machine": platform.machine(), "torch": torch.__version__}))


if __name__ == "__main__":
    main()
