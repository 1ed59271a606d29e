"""A short run of the benchmark of the command line."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "cli.py"
pytest.importorskip("resource", reason="measures by a module that only POSIX has")


def test_a_short_run_measures_every_command() -> None:
    command = [sys.executable, str(BENCHMARK), "--trials", "20", "--repeats", "1", "--json"]
    results = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout)
    seconds = results["cpu_seconds"]["this"]
    assert list(seconds) == ["status", "best", "trials", "tell", "load_study"]
    assert all(len(runs) == 1 and runs[0] > 0 for runs in seconds.values())
    assert {"date", "machine", "python", "numpy", "sqlalchemy"} <= results["environment"].keys()


def test_the_table_has_the_medians_in_a_row_for_each_checkout() -> None:
    spec = importlib.util.spec_from_file_location("cli_benchmark", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    runs = {name: [1.0, 3.0, 2.0] for name in benchmark.COMMANDS}
    header, *rows = benchmark.table({"before": runs, "now": {**runs, "tell": [0.5]}}).splitlines()
    assert header.split() == ["status", "best", "trials", "tell", "load_study", "CPU", "s"]
    assert rows[0].split() == ["2.00"] * 5 + ["before"]
    assert rows[1].split() == ["2.00", "2.00", "2.00", "0.50", "2.00", "now"]
