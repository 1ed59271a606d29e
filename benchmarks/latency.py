"""How long does a decision take, and how much memory? Seconds an ask against the number of trials on record.

    python benchmarks/latency.py                                  # next to Optuna's GP sampler
    python benchmarks/latency.py --sizes grid --q 1 4 16          # n = 20 .. 2000, d = 4, 10, 20
    python benchmarks/latency.py --sizes 20x4 --q 1 --repeats 1 --methods llamatune
    python benchmarks/latency.py --methods llamatune ax --peers-python ../peers/bin/python

``NxD`` means N trials of D parameters: random points of a smooth function with noise, another history for each repeat.
An ask is timed from the history in memory to ``q`` suggestions; building the history, and one ask before, are not.
Each method has a process of its own, so that its memory can be told: how far its peak resident size rises above
that after the untimed ask. The methods take turns, history by history, so that a busy machine slows all of them.

What takes longer than ``--time-limit`` seconds (a method, all repeats of a cell, histories included) is stopped; its
row says so and keeps what was measured, and the method is spared the cells that are larger in every respect. A method
that is not installed, or fails, is a row that says so. Peers run in their default set-up, on the CPU, one that this
Python does not have by the one of ``--peers-python``. The results, ``benchmarks/results/latency.json``, are written
cell by cell; ``--resume`` goes on with an interrupted run.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import select
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
GRID = [f"{n}x{d}" for n in (20, 50, 100, 200, 500, 1000, 2000) for d in (4, 10, 20)]
START_LIMIT = 180  # seconds to import a library and to ask once

Row = dict[str, Any]
History = tuple[list[dict[str, float]], list[float]]  # parameters, each in [0, 1], and their values: larger is better


def history(n: int, d: int, seed: int) -> History:
    rng = np.random.default_rng([n, d, seed])
    X = rng.random((n, d))
    last = X[:, min(2, d - 1)]
    Y = np.sin(5 * X[:, 0]) + X[:, min(1, d - 1)] ** 2 - 3 * (last - 0.3) ** 2 + 0.05 * rng.standard_normal(n)
    return [{f"x{j}": float(x) for j, x in enumerate(row)} for row in X], Y.tolist()


# --- What is timed: each prepares an ask for q points and returns it -----------------------------------------------


def llamatune(past: History, q: int, seed: int, device: str) -> Callable[[], object]:
    import torch

    from llamatune_torch import Real, SearchSpace, Settings, Study, Trial, TrialState
    from llamatune_torch.engine.suggest import suggest

    trials = [
        Trial(k, params, 0, "sobol", TrialState.COMPLETE, value)
        for k, (params, value) in enumerate(zip(*past, strict=True))
    ]
    study = Study(SearchSpace({name: Real(0, 1) for name in past[0][0]}), trials=tuple(trials))

    def ask() -> object:
        suggestions = suggest(study, Settings(seed=seed, device=device), q)
        if device != "cpu":
            torch.cuda.synchronize()
        return suggestions

    return ask


def optuna_gp(past: History, q: int, seed: int, device: str) -> Callable[[], object]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions = {name: optuna.distributions.FloatDistribution(0, 1) for name in past[0][0]}
    study = optuna.create_study(sampler=optuna.samplers.GPSampler(seed=seed), direction="maximize")
    study.add_trials(
        [
            optuna.trial.create_trial(params=params, distributions=distributions, value=value)
            for params, value in zip(*past, strict=True)
        ]
    )
    return lambda: [study.ask(distributions) for _ in range(q)]


def skopt_gp(past: History, q: int, seed: int, device: str) -> Callable[[], object]:
    from skopt import Optimizer

    optimizer = Optimizer([(0.0, 1.0)] * len(past[0][0]), base_estimator="GP", random_state=seed)
    rows, values = [list(params.values()) for params in past[0]], [-value for value in past[1]]

    def ask() -> object:
        optimizer.tell(rows, values)  # the fit, and the search for one point, happen in here
        return optimizer.ask(n_points=q) if q > 1 else optimizer.ask()

    return ask


def ax(past: History, q: int, seed: int, device: str) -> Callable[[], object]:
    import logging

    from ax.api.client import Client
    from ax.api.configs import RangeParameterConfig

    logging.disable(logging.WARNING)
    client = Client(random_seed=seed)
    client.configure_experiment(
        parameters=[RangeParameterConfig(name=name, bounds=(0.0, 1.0), parameter_type="float") for name in past[0][0]]
    )
    client.configure_optimization(objective="value")
    client.configure_generation_strategy(initialize_with_center=False)  # or the first ask costs no surrogate
    for params, value in zip(*past, strict=True):
        client.complete_trial(client.attach_trial(parameters=params), raw_data={"value": value})
    return lambda: client.get_next_trials(max_trials=q)


# The method, and the package and the module that it needs.
METHODS: dict[str, tuple[Callable[[History, int, int, str], Callable[[], object]], str, str]] = {
    "llamatune": (llamatune, "llamatune-torch", "llamatune_torch"),
    "optuna-gp": (optuna_gp, "optuna", "optuna"),
    "skopt": (skopt_gp, "scikit-optimize", "skopt"),
    "ax": (ax, "ax-platform", "ax"),
}


# --- A process for each method -------------------------------------------------------------------------------------


def work(method: str, n: int, d: int, q: int, device: str, threads: int) -> None:
    """Answers each seed on standard input with the seconds of an ask, and the peak memory so far."""
    warnings.simplefilter("ignore")  # the peers' notices
    import torch

    torch.set_num_threads(threads)
    prepare = METHODS[method][0]
    prepare(history(20, d, seed=10**6), 1, 0, device)()
    before = peak_mb()
    version = importlib.metadata.version(METHODS[method][1])
    print(json.dumps({"version": version}), flush=True)
    for line in sys.stdin:
        seed = int(line)
        ask = prepare(history(n, d, seed), q, seed, device)
        started = time.perf_counter()
        ask()
        seconds = time.perf_counter() - started
        print(json.dumps({"seconds": seconds, "peak_mb": peak_mb() - before, "process_mb": peak_mb()}), flush=True)


def peak_mb() -> float:
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


class Worker:
    """A method in a process of its own; silent until asked, and stopped when its time is up."""

    def __init__(self, python: str, method: str, cell: Row, threads: int) -> None:
        options = ["--worker", method, *(str(cell[name]) for name in ("n", "d", "q", "device"))]
        self.process = subprocess.Popen(
            [python, __file__, *options, "--threads", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
        )

    def answer(self, limit: float, question: str | None = None) -> Row:
        """The worker's next line.

        Raises:
            TimeoutError: it took longer than ``limit`` seconds.
            RuntimeError: it ended; the message is the last line that it wrote to standard error.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        if question is not None:
            self.process.stdin.write(f"{question}\n".encode())
            self.process.stdin.flush()
        deadline = time.monotonic() + limit
        while True:
            left = max(deadline - time.monotonic(), 0.0)
            if not select.select([self.process.stdout], [], [], left)[0]:
                raise TimeoutError
            line = self.process.stdout.readline()
            if not line:
                complaint = self.process.stderr.read().decode().strip().splitlines()
                raise RuntimeError(complaint[-1] if complaint else "ended without a word")
            if line.startswith(b"{"):  # some libraries print
                row: Row = json.loads(line)
                return row

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()


def measure(cell: Row, methods: Sequence[tuple[str, str, str]], repeats: int, limit: float, threads: int) -> list[Row]:
    """One row for each ``(method, device, python)``, which take turns at ``repeats`` histories."""
    rows: list[Row] = []
    workers: dict[int, Worker] = {}
    for k, (method, device, python) in enumerate(methods):
        rows.append({**cell, "method": method, "device": device, "seconds": []})
        workers[k] = Worker(python, method, rows[k], threads)
        try:
            rows[k]["version"] = workers[k].answer(START_LIMIT)["version"]
        except (TimeoutError, RuntimeError) as error:
            rows[k]["note"] = f"did not start: {error}"
            workers.pop(k).stop()
    left = dict.fromkeys(workers, limit)
    for seed in range(repeats):
        for k in list(workers):
            started = time.monotonic()
            try:
                told = workers[k].answer(left[k], str(seed))
            except TimeoutError:
                rows[k].update(over=limit, note=f"stopped: over {limit:g} s")
                workers.pop(k).stop()
            except (RuntimeError, BrokenPipeError) as error:
                rows[k]["note"] = f"failed: {error}"
                workers.pop(k).stop()
            else:
                rows[k]["seconds"].append(told["seconds"])
                rows[k].update(peak_mb=round(told["peak_mb"]), process_mb=round(told["process_mb"]))
                left[k] -= time.monotonic() - started
    for worker in workers.values():
        worker.stop()
    return rows


def python_with(method: str, peers_python: str | None) -> str | None:
    """The interpreter that has the library of ``method``, if one has it."""
    module = METHODS[method][2]
    if importlib.util.find_spec(module):
        return sys.executable
    if peers_python:
        code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
        if subprocess.run([peers_python, "-c", code], check=False).returncode == 0:
            return peers_python
    return None


def not_run(cell: Row, method: str, device: str, python: str | None, past: Sequence[Row]) -> Row | None:
    """A row that says why a method is not measured in a cell, if there is a reason."""
    row = {**cell, "method": method, "device": device, "seconds": []}
    if python is None:
        return {**row, "note": "not installed"}
    for other in past:
        is_smaller = all(other[name] <= cell[name] for name in ("n", "d", "q"))
        if (other["method"], other["device"]) == (method, device) and "over" in other and is_smaller:
            note = f"not run: {other['n']}x{other['d']}, q={other['q']} took over {other['over']:g} s"
            return {**row, "over": other["over"], "note": note}
    return None


# --- The table -----------------------------------------------------------------------------------------------------


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def environment(packages: Sequence[str] = ("llamatune-torch", "torch", "gpytorch", "botorch", "numpy")) -> Row:
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {gpu}",
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in packages},
    }


def shown(row: Row) -> str:
    """The median, "> limit" if not even one ask ended in time, "-" if there is none for another reason."""
    if row["seconds"]:
        return f"{statistics.median(row['seconds']):.3f}"
    return f">{row['over']:g}" if "over" in row else "-"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = ["20x4", "50x6", "100x8", "200x10", "500x10", "1000x20", "2000x20"]
    parser.add_argument("--sizes", nargs="+", default=sizes, metavar="NxD", help=f"or 'grid' (default {sizes})")
    parser.add_argument("--q", nargs="+", type=int, default=[1, 4, 16], help="points an ask (default 1 4 16)")
    parser.add_argument("--methods", nargs="+", default=["llamatune", "optuna-gp"], choices=list(METHODS))
    parser.add_argument("--devices", nargs="+", help="of llamatune (default: cpu, and cuda where there is a GPU)")
    parser.add_argument("--peers-python", metavar="PATH", help="for the libraries that this interpreter lacks")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--time-limit", type=float, default=120.0, metavar="S", help="for a method in a cell (120)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="keep the cells that --output already holds")
    parser.add_argument("--output", type=Path, default=RESULTS / "latency.json")
    parser.add_argument("--worker", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        method, n, d, q, device = options.worker
        work(method, int(n), int(d), int(q), device, options.threads)
        return

    pythons = {method: python_with(method, options.peers_python) for method in options.methods}
    devices = options.devices or ["cpu", *(["cuda"] if has_gpu() else [])]
    columns = [(m, device) for m in options.methods for device in (devices if m == "llamatune" else ["cpu"])]
    sizes = [tuple(map(int, size.split("x"))) for size in (GRID if options.sizes == ["grid"] else options.sizes)]
    past = json.loads(options.output.read_text())["rows"] if options.resume and options.output.exists() else []
    record = {"environment": environment(), "threads": options.threads, "rows": past}

    names = [method if device == "cpu" else f"{method} {device}" for method, device in columns]
    print(f"{'trials x parameters, q':<24}" + "".join(f"{name:>14}" for name in [*names, "MB"]))
    for cell in ({"n": n, "d": d, "q": q} for q in options.q for n, d in sizes):
        rows = {(row["method"], row["device"]): row for row in past if all(row[name] == cell[name] for name in cell)}
        missing = [column for column in columns if column not in rows]
        why_not = {column: not_run(cell, *column, pythons[column[0]], past) for column in missing}
        wanted = [(method, device, pythons[method]) for method, device in missing if why_not[method, device] is None]
        measured = measure(cell, wanted, options.repeats, options.time_limit, options.threads)
        new = [*measured, *(row for row in why_not.values() if row)]
        rows |= {(row["method"], row["device"]): row for row in new}
        past += new
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(record, indent=1) + "\n")
        memory = max((row.get("peak_mb", 0) for row in rows.values() if row["method"] == "llamatune"), default=0)
        line = "".join(f"{shown(rows[column]):>14}" for column in columns)
        print(f"{'{n}x{d}, {q}'.format(**cell):<24}{line}{memory:>14}", flush=True)
    for note in sorted({f"{row['method']}: {row['note']}" for row in past if "note" in row}):
        print(note)


if __name__ == "__main__":
    main()
