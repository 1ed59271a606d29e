"""What durability costs: throughput and latency of ask and tell with many processes, and what storage adds to an ask.

    .venv/bin/python benchmarks/storage.py            # SQLite and PostgreSQL, 8 processes x 50 trials, 1,000 trials
    .venv/bin/python benchmarks/storage.py --trials 5 --long 50 --stores sqlite

Suggestions cost nothing here (fixed parameters), so what is measured is storage alone: an ask is the transaction that
reads what is new, and the one that starts the trial and waits for the disk; a tell is one that waits for the disk.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sqlite3
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import sqlalchemy
from postgres import NoServer, server

from llamatune_torch import Integer, Real, SearchSpace, Study, Trial, TrialState
from llamatune_torch.decisions import Start
from llamatune_torch.storage.durable import DurableStore
from llamatune_torch.storage.memory import MemoryStore
from llamatune_torch.storage.store import Store

SPACE = SearchSpace({"lr": Real(1e-5, 1e-3, prior="log-uniform"), "batch": Integer(8, 32), "method": ["full", "lora"]})
PARAMS = {"lr": 1e-4, "batch": 16, "method": "lora"}
RESULTS = Path(__file__).parent / "results" / "storage.json"


def choose(study: Study, n: int, left: float) -> list[Start]:
    return [Start(PARAMS, "sobol")] * n


def finished(trial: Trial, now: float) -> Trial:
    return replace(trial, state=TrialState.COMPLETE, value=0.5, finished=now)


def timed(store: Store, trials: int) -> dict[str, list[float]]:
    """The seconds that each of so many asks and tells took."""
    seconds: dict[str, list[float]] = {"ask": [], "tell": []}
    for _ in range(trials):
        start = time.perf_counter()
        (trial,) = store.start(1, choose, 0, 10**9)
        middle = time.perf_counter()
        store.change(trial, finished)
        seconds["ask"].append(middle - start)
        seconds["tell"].append(time.perf_counter() - middle)
    return seconds


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Milliseconds."""
    ordered = sorted(seconds)
    return {
        "p50_ms": round(1e3 * statistics.median(ordered), 2),
        "p99_ms": round(1e3 * ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))], 2),
    }


def crowd(url: str, processes: int, trials: int) -> dict[str, Any]:
    """So many processes that do nothing but ask and tell, all on one study."""
    context = multiprocessing.get_context("fork")
    queue, ready = context.Queue(), context.Barrier(processes + 1)
    name = uuid.uuid4().hex

    def work() -> None:
        store = DurableStore(url, name, Study(SPACE))
        ready.wait(60)
        queue.put(timed(store, trials))

    workers = [context.Process(target=work) for _ in range(processes)]
    for worker in workers:
        worker.start()
    ready.wait(60)
    start = time.perf_counter()
    results = [queue.get(timeout=600) for _ in workers]
    wall = time.perf_counter() - start
    for worker in workers:
        worker.join()
    return {
        "processes": processes,
        "trials": processes * trials,
        "trials_per_second": round(processes * trials / wall, 1),
        "ask": percentiles([s for result in results for s in result["ask"]]),
        "tell": percentiles([s for result in results for s in result["tell"]]),
    }


def long_study(url: str, trials: int, repeats: int = 50) -> dict[str, Any]:
    """What storage adds to an ask of a study with so many trials, next to one in memory."""
    stored, memory = DurableStore(url, uuid.uuid4().hex, Study(SPACE)), MemoryStore(Study(SPACE))
    for store in (stored, memory):
        for _ in range(trials // 50):
            for trial in store.start(50, choose, 0, 10**9):
                store.change(trial, finished)
    alone, durable = timed(memory, repeats), timed(stored, repeats)
    start = time.perf_counter()
    DurableStore(url, stored.name, Study(SPACE))
    return {
        "trials": trials,
        "ask_added_ms": round(1e3 * (statistics.median(durable["ask"]) - statistics.median(alone["ask"])), 2),
        "tell_added_ms": round(1e3 * (statistics.median(durable["tell"]) - statistics.median(alone["tell"])), 2),
        "ask": percentiles(durable["ask"]),
        "opening_ms": round(1e3 * (time.perf_counter() - start), 1),
    }


@contextmanager
def sqlite() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        yield f"sqlite:///{folder}/study.db"


STORES: dict[str, Callable[[], Any]] = {"sqlite": sqlite, "postgresql": server}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--trials", type=int, default=50, help="of each process")
    parser.add_argument("--long", type=int, default=1000, help="trials of the long study")
    parser.add_argument("--stores", nargs="+", choices=list(STORES), default=list(STORES))
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}")
    options = parser.parse_args(arguments)
    results: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start",
        "versions": {
            "python": platform.python_version(),
            "sqlalchemy": sqlalchemy.__version__,
            "sqlite": sqlite3.sqlite_version,
        },
    }
    for store in options.stores:
        try:
            with STORES[store]() as url:
                results[store] = {
                    "crowd": crowd(url, options.processes, options.trials),
                    "long": long_study(url, options.long),
                }
        except NoServer as reason:
            results[store] = {"skipped": str(reason)}
    print(json.dumps(results, indent=2))
    if options.save:
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    return results


if __name__ == "__main__":
    main()
