"""Each engine for real: the example as it is, and a trial that kills its worker."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "parallel.py"
PACKAGES = {"dask": "distributed", "ray": "ray", "slurm": "submitit"}


def needs(engine: str) -> None:
    package = PACKAGES.get(engine)
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"the extra `{engine}` is not installed")


def run(folder: Path, *command: str) -> str:
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        out, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, out
    return out


@pytest.mark.parametrize("engine", ["processes", "threads", "dask", "ray", "slurm"])
def test_example_runs_on_each_engine(engine: str, tmp_path: Path) -> None:
    needs(engine)
    out = run(tmp_path, str(SCRIPT), "--engine", engine, "--trials", "4")
    assert "4 trials (4 complete), " in out
    assert re.search(r"best value \(maximize\): 0\.[89]\d* in trial \d", out)


CRASH = """
import os, sys
from llamatune_torch import LlamaTune
from llamatune_torch.runtime.evaluation import report
from parallel import started

def evaluate(params):
    report(1, 0.5, 1.0)
    if params["x"] == 0.5:
        os._exit(3)
    return params["x"]

if __name__ == "__main__":
    tuner = LlamaTune({"x": (0.0, 1.0)}, evaluate, 4, n_initial=50, initial_points=[{"x": 0.2}, {"x": 0.5}])
    with started(sys.argv[1], 2) as where:
        tuner.optimize(**where)
    print([(trial.state.value, len(trial.curve)) for trial in tuner.study.trials])
    print("reason:", tuner.study.trials[1].reason)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "reason"), [("dask", "KilledWorker"), ("ray", "WorkerCrashedError"), ("slurm", "UncompletedJobError")]
)
def test_a_trial_that_kills_its_worker_is_a_failed_trial_on_each_cluster(
    engine: str, reason: str, tmp_path: Path
) -> None:
    needs(engine)
    program = tmp_path / "program.py"
    program.write_text(CRASH)
    out = run(tmp_path, str(program), engine)
    assert "[('complete', 1), ('failed', 0), ('complete', 1), ('complete', 1)]" in out
    assert f"reason: {reason}" in out


def test_example_is_short() -> None:
    assert len(SCRIPT.read_text().splitlines()) < 110
