"""The example of limits, as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import wordnet_glosses  # noqa: E402


@pytest.fixture
def glosses() -> None:
    try:
        wordnet_glosses.read_glosses()
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("glosses")
@pytest.mark.parametrize(
    ("seconds", "end"),
    [("1000", "What bound: "), pytest.param("0.001", "No trial keeps the limits", marks=pytest.mark.slow)],
)
def test_it_ends_with_a_feasible_best_or_says_how_near_it_came(seconds: str, end: str, tmp_path: Path) -> None:
    few = ["--max-evals", "1", "--subset", "64", "--memory-gb", "100", "--seconds", seconds]
    command = [sys.executable, str(EXAMPLES / "constraints.py"), *few, "--output-dir", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900, env=environment)
    assert done.returncode == 0, done.stderr
    assert "1 trials (1 complete)" in done.stdout
    assert end in done.stdout
    assert f"seconds <= {float(seconds):g}" in done.stdout
