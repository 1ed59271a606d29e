"""A short run of the storage benchmark."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("storage_benchmark", BENCHMARKS / "storage.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["storage_benchmark"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(os.name != "posix", reason="forks")
def test_a_short_run_measures_every_part() -> None:
    options = ["--processes", "2", "--trials", "5", "--long", "100", "--stores", "sqlite"]
    command = [sys.executable, str(BENCHMARKS / "storage.py"), *options]
    results = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)
    crowd, long = results["sqlite"]["crowd"], results["sqlite"]["long"]
    assert (crowd["processes"], crowd["trials"], long["trials"]) == (2, 10, 100)
    for seconds in (crowd["ask"], crowd["tell"], long["ask"]):
        assert 0 < seconds["p50_ms"] <= seconds["p99_ms"]
    assert crowd["trials_per_second"] > 0


def test_percentiles_are_those_of_a_list_worked_out_by_hand(benchmark: ModuleType) -> None:
    assert benchmark.percentiles([k / 1000 for k in range(1, 101)]) == {"p50_ms": 50.5, "p99_ms": 100.0}
