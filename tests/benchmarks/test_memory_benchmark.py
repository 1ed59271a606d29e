"""The benchmark of computed memory, in small."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import memory
import numpy as np
import pytest
import torch


def test_a_short_run_measures_and_judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = "--models bert --methods full --layers 1 --hidden 32 --batches 2 4 --lengths 16 32"
    monkeypatch.setattr(sys, "argv", ["memory.py", *sizes.split(), "--output", str(tmp_path / "out.json")])
    memory.main()
    cells = json.loads((tmp_path / "out.json").read_text())["cells"]
    assert [cell["cell"] for cell in cells] == ["bert, full", "bert, full, checkpointing"]
    assert all(len(cell["measured"]) == 4 and min(cell["measured"]) > 0 for cell in cells)


def test_a_search_needs_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["memory.py", "--search", "3", "--device", "cpu"])
    with pytest.raises(SystemExit):
        memory.main()
    assert "--search needs CUDA" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: torch.cuda.is_available() is False")
def test_a_search_counts_what_runs_out_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = "--search 1 --trials 3 --layers 2 --hidden 64 --heads 2 --vocabulary 500 --lengths 64"
    monkeypatch.setattr(sys, "argv", ["memory.py", *sizes.split(), "--output", str(tmp_path / "out.json")])
    memory.main()
    causes = json.loads((tmp_path / "out.json").read_text())
    assert all(len(causes[name]) == 3 for name in ("no limit", "with the limit", "auto_batch"))


def test_three_measurements_take_a_common_factor_away() -> None:
    predicted = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    found = memory.judge(predicted, 1.3 * predicted)
    assert found["before"] == pytest.approx([100 * np.log(1.3)] * 5)
    assert max(found["after"]) < 2
