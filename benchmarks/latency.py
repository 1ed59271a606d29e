"""How long does a decision take? Seconds an ask against the number of trials on record.

    python benchmarks/latency.py                          # on the CPU, one thread, next to Optuna's GP sampler
    python benchmarks/latency.py --sizes 20x4 --repeats 1 --methods llamatune

Writes ``benchmarks/results/latency.json`` and prints the median over the repeats, each on a history of its own, after
one untimed ask. The histories are random points of a smooth function with noise; ``NxD`` means N trials of D
parameters.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from regret import environment

from llamatune_torch import Real, SearchSpace, Settings, Study, Trial, TrialState
from llamatune_torch.engine.suggest import suggest

RESULTS = Path(__file__).parent / "results"


def history(n: int, d: int, seed: int) -> Study:
    space = SearchSpace({f"x{i}": Real(0, 1) for i in range(d)})
    generator = torch.Generator().manual_seed(seed)
    X = torch.rand(n, d, generator=generator, dtype=torch.float64)
    noise = 0.05 * torch.randn(n, generator=generator, dtype=torch.float64)
    Y = torch.sin(5 * X[:, 0]) + X[:, 1] ** 2 - 3 * (X[:, 2] - 0.3) ** 2 + noise
    rows = zip(space.decode_all(X), Y.tolist(), strict=True)
    trials = [Trial(k, params, 0, "sobol", TrialState.COMPLETE, value) for k, (params, value) in enumerate(rows)]
    return Study(space, trials=tuple(trials))


def llamatune(study: Study, seed: int) -> float:
    started = time.perf_counter()
    suggest(study, Settings(seed=seed))
    return time.perf_counter() - started


def optuna_gp(study: Study, seed: int) -> float:
    import warnings

    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions = {name: optuna.distributions.FloatDistribution(0, 1) for name in study.space.names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "experimental" notices of the peer
        peer = optuna.create_study(sampler=optuna.samplers.GPSampler(seed=seed), direction="maximize")
        for trial in study.trials:
            peer.add_trial(
                optuna.trial.create_trial(params=trial.params, distributions=distributions, value=trial.value)
            )
        started = time.perf_counter()
        peer.ask(distributions)
        return time.perf_counter() - started


METHODS = {"llamatune": llamatune, "optuna-gp": optuna_gp}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["20x4", "50x6", "100x8", "200x10", "500x10", "1000x20"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS / "latency.json")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)

    rows: list[dict[str, Any]] = []
    print(f"{'trials x parameters':<22}" + "".join(f"{method:>12}" for method in options.methods))
    for size in options.sizes:
        n, d = map(int, size.split("x"))
        medians = []
        for method in options.methods:
            METHODS[method](history(20, d, seed=99), 0)  # imports, and what is compiled once
            seconds = [METHODS[method](history(n, d, seed), seed) for seed in range(options.repeats)]
            medians.append(statistics.median(seconds))
            rows.append({"n": n, "d": d, "method": method, "seconds": seconds})
        print(f"{size:<22}" + "".join(f"{median:>12.3f}" for median in medians), flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    record = {"environment": environment(), "threads": options.threads, "rows": rows}
    options.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
