"""Short runs of the latency benchmark: what it measures, what it leaves out and says so, and how it goes on."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "latency.py"


@pytest.fixture(scope="module")
def latency() -> ModuleType:
    spec = importlib.util.spec_from_file_location("latency", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["latency"] = module
    spec.loader.exec_module(module)
    return module


def run(latency: ModuleType, output: Path, options: str) -> list[dict[str, Any]]:
    latency.main(["--devices", "cpu", "--repeats", "2", "--output", str(output), *options.split()])
    rows: list[dict[str, Any]] = json.loads(output.read_text())["rows"]
    return rows


def test_script_times_asks_writes_its_record_and_goes_on_with_it(
    latency: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "latency.json"
    rows = run(latency, output, "--methods llamatune --sizes 20x4 --q 2")
    (row,) = rows
    assert (row["n"], row["d"], row["q"], row["device"], len(row["seconds"])) == (20, 4, 2, "cpu", 2)
    assert all(0 < seconds < 60 for seconds in row["seconds"])
    assert 0 <= row["peak_mb"] < row["process_mb"] < 4096
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["20x4,", "2"]

    more = run(latency, output, "--methods llamatune --sizes 20x4 30x3 --q 2 --resume")
    assert more[0] == row
    assert [(row["n"], row["d"]) for row in more[1:]] == [(30, 3)]


def test_what_takes_too_long_or_is_not_installed_is_a_row_that_says_so(
    latency: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(latency.METHODS, "ax", (latency.ax, "no-such-package", "no_such_package"))
    options = "--methods llamatune ax --sizes 20x4 20x5 --q 1 --time-limit 0"
    rows = run(latency, tmp_path / "latency.json", options)
    notes = {name: [row["note"] for row in rows if row["method"] == name] for name in ("llamatune", "ax")}
    assert notes["llamatune"] == ["stopped: over 0 s", "not run: 20x4, q=1 took over 0 s"]
    assert notes["ax"] == ["not installed"] * 2
    assert all(row["seconds"] == [] for row in rows)
    assert capsys.readouterr().out.splitlines()[1].split() == ["20x4,", "1", ">0", "-", "0"]


def test_a_cell_is_left_out_only_if_it_is_larger_in_every_respect(latency: ModuleType) -> None:
    slow = {"n": 100, "d": 10, "q": 1, "method": "ax", "device": "cpu", "seconds": [50.0], "over": 60.0}

    def reason(method: str = "ax", **cell: int) -> Any:
        return latency.not_run(cell, method, "cpu", sys.executable, [slow])

    assert reason(n=100, d=10, q=4)["note"] == "not run: 100x10, q=1 took over 60 s"
    assert reason(n=200, d=4, q=1) is None
    assert reason(n=50, d=20, q=4) is None
    assert reason("llamatune", n=200, d=20, q=4) is None
