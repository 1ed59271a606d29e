"""Several trials at a time, on this machine or on a cluster; as soon as one ends, the next begins.

    python examples/parallel.py --engine processes   # of this machine; with GPUs: optimize(gpus="auto"), one for each
    python examples/parallel.py --engine threads     # for evaluations that wait for something else, such as a service
    python examples/parallel.py --engine dask        # pip install 'llamatune-torch[dask]'
    python examples/parallel.py --engine ray         # pip install 'llamatune-torch[ray]'
    python examples/parallel.py --engine slurm       # pip install 'llamatune-torch[slurm]'; where there is no Slurm,
                                                     # submitit starts the same jobs on this machine

``tune(trainer_factory, space, ...)`` takes the same arguments as ``optimize`` here.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from llamatune_torch import Integer, LlamaTune, Real

SPACE = {"learning_rate": Real(1e-6, 1e-3, prior="log-uniform"), "batch_size": Integer(4, 64)}


def evaluate(params: dict) -> float:
    """A stand-in for a fine-tune. At the top level of a module, where other processes find it."""
    time.sleep(0.5)
    off = math.log10(params["learning_rate"] / 3e-5)
    return 0.9 - 0.05 * off**2 - 0.01 * math.log2(params["batch_size"] / 16) ** 2


class RayExecutor:
    """All that it takes for Ray; ``options`` are those of ``ray.remote``, such as ``num_gpus=1``."""

    def __init__(self, **options: Any) -> None:
        self.options = {"num_cpus": 1, "max_retries": 0, **options}  # a trial that kills its worker is not tried again

    def submit(self, function: Any, *args: Any) -> Future:
        import ray

        return ray.remote(**self.options)(function).remote(*args).future()


@contextmanager
def started(engine: str, workers: int) -> Iterator[dict[str, Any]]:
    """What ``optimize`` is told of where to run; what was started for it ends with it."""
    if engine == "processes":
        yield {"n_workers": workers}
    elif engine == "threads":
        with ThreadPoolExecutor(workers) as pool:
            yield {"executor": pool}
    elif engine == "dask":
        from distributed import Client, LocalCluster

        # On a cluster: Client("tcp://scheduler:8786"), or a cluster of dask-jobqueue or dask-kubernetes.
        local = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)
        with local, Client(local) as client:
            yield {"executor": client.get_executor(), "n_workers": workers}
    elif engine == "ray":
        import ray

        ray.init(num_cpus=workers, include_dashboard=False)  # on a cluster: ray.init("auto")
        try:
            yield {"executor": RayExecutor(), "n_workers": workers}
        finally:
            ray.shutdown()
    else:
        import submitit

        jobs = submitit.AutoExecutor("runs/submitit")
        jobs.update_parameters(timeout_min=60)  # on Slurm also: slurm_partition="gpu", gpus_per_node=1
        yield {"executor": jobs, "n_workers": workers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=["processes", "threads", "dask", "ray", "slurm"], default="processes")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--trials", type=int, default=12)
    options = parser.parse_args()
    tuner = LlamaTune(SPACE, evaluate, max_evals=options.trials)
    with started(options.engine, options.workers) as where:
        tuner.optimize(**where)
    print(tuner.study.summary())


if __name__ == "__main__":
    main()
