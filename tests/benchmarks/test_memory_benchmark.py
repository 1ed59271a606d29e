"""The benchmark of computed memory, in small."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import memory
import numpy as np
import pytest


def test_a_short_run_measures_and_judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = "--models bert --methods full --layers 1 --hidden 32 --batches 2 4 --lengths 16 32"
    monkeypatch.setattr(sys, "argv", ["memory.py", *sizes.split(), "--output", str(tmp_path / "out.json")])
    memory.main()
    cells = json.loads((tmp_path / "out.json").read_text())["cells"]
    assert [cell["cell"] for cell in cells] == ["bert, full", "bert, full, checkpointing"]
    assert all(len(cell["measured"]) == 4 and min(cell["measured"]) > 0 for cell in cells)


def test_three_measurements_take_a_common_factor_away() -> None:
    predicted = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    found = memory.judge(predicted, 1.3 * predicted)
    assert found["before"] == pytest.approx([100 * np.log(1.3)] * 5)
    assert max(found["after"]) < 2
