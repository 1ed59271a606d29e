"""The GPU benchmark on a machine that may have none: a short run, and its verdict on figures made up by hand."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from llamatune_torch.engine.data import CUDA_FROM_TRIALS

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    for name in ("latency", "gpu"):  # the second imports from the first
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules["gpu"]


def row(device: str, n: int, seconds: float | None, **others: Any) -> dict[str, Any]:
    """``None`` seconds: not run."""
    cell = {"part": "ask", "n": n, "restarts": 8, "q": 1, "device": device}
    return {**cell, "seconds": [] if seconds is None else [seconds], **others}


def test_a_short_run_times_every_part(gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "gpu.json"
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    options = f"--sizes 12 --dim 2 --restarts 8 16 --q 2 --repeats 1 --devices {' '.join(devices)} --output {output}"
    gpu.main(options.split())
    rows = json.loads(output.read_text())["rows"]
    assert {(r["part"], r["restarts"], r["q"]) for r in rows} == {
        *(("likelihood", 8, 1), ("fit", 8, 1), ("posterior", 8, 1)),
        *((part, *cell) for part in ("acquisition", "ask") for cell in ((8, 1), (16, 1), (8, 2))),
    }
    assert [r["device"] for r in rows] == devices * (len(rows) // len(devices))
    assert all(0 < seconds < 60 for r in rows for seconds in r["seconds"])
    assert all(len(r["seconds"]) == 1 for r in rows)
    if len(devices) == 1:
        assert "no crossover to be seen" in capsys.readouterr().out.splitlines()[-1]


def test_what_takes_too_long_is_not_tried_again_on_a_larger_scale(gpu: ModuleType) -> None:
    cell = {"part": "likelihood", "n": 8, "restarts": 8, "q": 1}
    slow = gpu.measure(cell, 2, "cpu", 3, 0.0, [])
    assert (len(slow["seconds"]), slow["over"]) == (1, 0.0)
    larger = gpu.measure({**cell, "n": 10**9}, 2, "cpu", 3, 0.0, [slow])
    assert larger["seconds"] == []
    assert larger["note"] == "not run: too slow or too large at n=8, 8 restarts, q=1"


@pytest.mark.parametrize(
    ("cuda", "expected"),
    [
        ({50: 3.0, 200: 3.0, 1000: 3.0}, 1000),
        ({50: 0.5, 200: 3.0, 1000: 3.0}, 1000),  # quicker at 50 by chance, not at 200
        ({50: 0.5, 200: 1.5, 1000: 3.0}, 50),
        ({50: 3.0, 200: 2.0, 1000: 3.0}, 200),  # as quick is quick enough
        ({50: 3.0, 200: 3.0, 1000: 30.0}, None),
        ({50: 3.0, 200: 1.0, 1000: None}, None),  # out of memory
    ],
)
def test_the_crossover_is_where_cuda_is_quicker_from_then_on(
    gpu: ModuleType, cuda: dict[int, float | None], expected: int | None
) -> None:
    rows = [row("cpu", n, seconds) for n, seconds in ((50, 1.0), (200, 2.0), (1000, 20.0), (5000, None))]
    rows += [row("cuda", n, seconds) for n, seconds in cuda.items()]
    others = [
        row("cpu", 50, 9.0, restarts=64), row("cuda", 50, 0.1, restarts=64), row("cuda", 50, 0.1, part="fit")
    ]  # fmt: skip
    assert gpu.crossover(rows + others) == expected
    verdict = gpu.verdict(rows)
    assert f"it is {CUDA_FROM_TRIALS}" in verdict if expected else "should be larger" in verdict


def test_a_cpu_that_was_too_slow_has_lost(gpu: ModuleType) -> None:
    assert gpu.crossover([row("cpu", 5000, None), row("cuda", 5000, 5.0)]) == 5000
    assert gpu.crossover([row("cpu", 5000, None), row("cuda", 5000, None)]) is None
