"""The script behind the shipped weights still runs, and gives the same weights for the same seed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

SCRIPT = Path(__file__).parents[2] / "examples" / "assets" / "pretrain_tiny_gpt2.py"


@pytest.mark.slow
def test_a_short_pretraining_leaves_a_model_and_its_tokenizer_and_repeats(tmp_path: Path) -> None:
    weights = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        command = [sys.executable, str(SCRIPT), "--texts", "300", "--epochs", "1", "--output-dir", str(folder)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
        weights.append(load_file(folder / "model.safetensors"))
    first, second = weights
    assert all(first[name].equal(second[name]) for name in first)
