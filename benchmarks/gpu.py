"""From how many trials on does a GPU pay? The parts of an ask, and whole asks, on CUDA next to the CPU.

    python benchmarks/gpu.py                                            # n up to 10,000 where there is a GPU
    python benchmarks/gpu.py --sizes 20 50 --restarts 8 --q 1 --repeats 1     # small enough for a CPU alone

    part           what is timed, each after one untimed call
    likelihood     one evaluation of the surrogate's log posterior and its gradient
    fit            the whole fit
    posterior      mean and variance at 1,024 points, without gradients
    acquisition    value and gradient at as many points as there are restarts: one step of the search for candidates;
                   with q > 1, q - 1 points are pending
    ask            everything, from the study to q sets of parameters

for each n, number of restarts and q (``fit``, ``likelihood`` and ``posterior`` depend on n alone). A part that took
longer than ``--time-limit`` seconds is left out where n, restarts and q are as large or larger, in a row that says
so; so is one that runs out of memory. Memory is CUDA's peak during the timed calls. The rows go to
``benchmarks/results/gpu.json``; at the end stands the crossover: from how many trials on an ask with q = 1 and 8
restarts, which is the default, is quicker on the GPU. ``CUDA_FROM_TRIALS`` in ``llamatune_torch/engine/data.py`` should
be that number.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from latency import environment, history
from torch import Tensor

from llamatune_torch import Real, SearchSpace, Settings, Study, Trial, TrialState
from llamatune_torch.engine.acquisition import make_acquisition
from llamatune_torch.engine.data import CUDA_FROM_TRIALS, training_data
from llamatune_torch.engine.kernel import ProductKernel
from llamatune_torch.engine.suggest import suggest
from llamatune_torch.engine.surrogate import Surrogate, fit_gp

RESULTS = Path(__file__).parent / "results"
DEFAULT_RESTARTS = Settings().num_restarts
PARTS = ("likelihood", "fit", "posterior", "acquisition", "ask")

Row = dict[str, Any]


def study_of(n: int, d: int) -> Study:
    rows, values = history(n, d, seed=0)
    finished = enumerate(zip(rows, values, strict=True))
    trials = tuple(Trial(k, params, 0, "sobol", TrialState.COMPLETE, value) for k, (params, value) in finished)
    return Study(SearchSpace({name: Real(0, 1) for name in rows[0]}), trials=trials)


def prepared(part: str, study: Study, device: str, restarts: int, q: int) -> Callable[[], object]:
    """What is to be timed, ready to be called."""
    settings = Settings(device=device, num_restarts=restarts)
    if part == "ask":
        return lambda: suggest(study, settings, q)
    data = training_data(study, torch.device(device), [])
    kernel = ProductKernel(data.features)
    if part == "fit":
        return lambda: fit_gp(kernel, data.X, data.Y)
    surrogate = Surrogate(kernel, data.X, data.Y)
    theta = surrogate.theta
    if part == "likelihood":
        return lambda: surrogate.log_posterior(theta)
    surrogate.eval()
    points = torch.rand(1024 + q, study.space.dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    points = points.to(data.X)
    if part == "posterior":
        return lambda: moments(surrogate, points[:1024])
    acquisition = make_acquisition(settings, surrogate, data.X, points[1024 : 1023 + q], [], seed=0)
    starts = points[torch.arange(restarts) % 1024].unsqueeze(-2)

    def step() -> Tensor:
        X = starts.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(acquisition(X).sum(), X)
        return gradient

    return step


@torch.no_grad()
def moments(surrogate: Any, X: Tensor) -> tuple[Tensor, Tensor]:
    posterior = surrogate.posterior(X.unsqueeze(-2))
    return posterior.mean, posterior.variance


def timed(call: Callable[[], object], device: str, repeats: int, limit: float) -> Row:
    """Seconds of each call after one untimed one, which has to do if it takes longer than ``limit``."""
    is_cuda = torch.device(device).type == "cuda"

    def seconds() -> float:
        if is_cuda:
            torch.cuda.synchronize()
        started = time.perf_counter()
        call()
        if is_cuda:
            torch.cuda.synchronize()  # what was only queued so far belongs to the call
        return time.perf_counter() - started

    first = seconds()
    if first > limit:
        return {"seconds": [first], "over": limit, "note": f"over {limit:g} s: one call, not warmed up"}
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
    row: Row = {"seconds": [seconds() for _ in range(repeats)]}
    return row | ({"peak_mb": round(torch.cuda.max_memory_allocated() / 2**20)} if is_cuda else {})


def cells(sizes: Sequence[int], restarts: Sequence[int], qs: Sequence[int]) -> Iterator[Row]:
    """The combinations worth timing: n alone for the fit, restarts and q where they matter; small ones first."""
    for n in sizes:
        for part in ("likelihood", "fit", "posterior"):
            yield {"part": part, "n": n, "restarts": DEFAULT_RESTARTS, "q": 1}
        for part in ("acquisition", "ask"):
            for b in restarts:
                yield {"part": part, "n": n, "restarts": b, "q": 1}
            for q in qs:
                if q > 1:
                    yield {"part": part, "n": n, "restarts": restarts[0], "q": q}


def measure(cell: Row, dim: int, device: str, repeats: int, limit: float, past: Sequence[Row]) -> Row:
    """One row; not measured, but with a note, if a smaller cell has shown that it would take too long."""
    row = {**cell, "device": device, "seconds": []}
    for other in past:
        same = (other["part"], other["device"]) == (cell["part"], device)
        if same and "over" in other and all(cell[name] >= other[name] for name in ("n", "restarts", "q")):
            why = f"not run: too slow or too large at n={other['n']}, {other['restarts']} restarts, q={other['q']}"
            return row | {"over": other["over"], "note": why}
    try:
        call = prepared(cell["part"], study_of(cell["n"], dim), device, cell["restarts"], cell["q"])
        return row | timed(call, device, repeats, limit)
    except torch.cuda.OutOfMemoryError:
        return row | {"over": limit, "note": "out of CUDA memory"}


def crossover(rows: Sequence[Row], part: str = "ask") -> int | None:
    """The smallest measured n from which on CUDA is at least as quick as the CPU, default restarts and ``q = 1``.

    ``None`` if that is so at no n, or nothing can be compared. A CPU that was too slow to be measured has lost.
    """
    first = None
    for n in sorted({row["n"] for row in rows}):
        medians = {}
        for row in rows:
            if (row["part"], row["n"], row["restarts"], row["q"]) == (part, n, DEFAULT_RESTARTS, 1):
                medians[torch.device(row["device"]).type] = median(row)
        cpu, cuda = medians.get("cpu"), medians.get("cuda")
        if cpu is None or cuda is None or (cpu == cuda == torch.inf):
            continue
        if cuda > cpu:
            first = None
        elif first is None:
            first = n
    return first


def median(row: Row) -> float:
    return statistics.median(row["seconds"]) if row["seconds"] else torch.inf


def verdict(rows: Sequence[Row]) -> str:
    if {torch.device(row["device"]).type for row in rows} != {"cpu", "cuda"}:
        return f"one kind of device only: no crossover to be seen; CUDA_FROM_TRIALS stays {CUDA_FROM_TRIALS}"
    found = crossover(rows)
    if found is None:
        return f"the CPU is quicker at the largest n; CUDA_FROM_TRIALS is {CUDA_FROM_TRIALS} and should be larger"
    return f"asks are quicker on CUDA from n = {found} on: CUDA_FROM_TRIALS = {found} (it is {CUDA_FROM_TRIALS})"


def main(arguments: list[str] | None = None) -> None:
    has_gpu = torch.cuda.is_available()
    sizes = [20, 50, 100, 200, 500, 1000, 2000, 5000, 10000] if has_gpu else [20, 50, 100, 200, 500]
    restarts, qs = ([8, 64, 1024], [4, 16, 64]) if has_gpu else ([8, 64], [4])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=sizes, help=f"observations (default {sizes})")
    parser.add_argument("--dim", type=int, default=10, help="parameters (default 10)")
    parser.add_argument("--restarts", nargs="+", type=int, default=restarts, help=f"default {restarts}")
    parser.add_argument("--q", nargs="+", type=int, default=qs, help=f"with the fewest restarts (default {qs})")
    parser.add_argument("--devices", nargs="+", default=["cpu", "cuda"] if has_gpu else ["cpu"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--time-limit", type=float, default=60.0, metavar="S", help="for one call (default 60)")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (default 1)")
    parser.add_argument("--output", type=Path, default=RESULTS / "gpu.json")
    options = parser.parse_args(arguments)
    threads = torch.get_num_threads()
    torch.set_num_threads(options.threads)

    rows: list[Row] = []
    record = {"environment": environment(), "dim": options.dim, "threads": options.threads, "rows": rows}
    print(f"{'part':<12}{'n':>7}{'restarts':>10}{'q':>4}" + "".join(f"{device:>11}" for device in options.devices))
    for cell in cells(sorted(options.sizes), sorted(options.restarts), sorted(options.q)):
        new = [
            measure(cell, options.dim, device, options.repeats, options.time_limit, rows) for device in options.devices
        ]
        rows += new
        shown = "".join(f"{median(row):>11.4f}" if row["seconds"] else f"{'-':>11}" for row in new)
        print(f"{cell['part']:<12}{cell['n']:>7}{cell['restarts']:>10}{cell['q']:>4}{shown}", flush=True)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(record, indent=1) + "\n")
    print(verdict(rows))
    torch.set_num_threads(threads)


if __name__ == "__main__":
    main()
