"""The example of past studies, as a user runs it, and its count of evaluations."""

from __future__ import annotations

import importlib.util
import os
import re
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
def test_the_whole_model_learns_from_its_half(tmp_path: Path) -> None:
    few = ["--max-evals", "2", "--small-evals", "4", "--subset", "32", "--output-dir", str(tmp_path)]
    command = [sys.executable, str(EXAMPLES / "transfer.py"), *few]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900, env=environment)
    assert done.returncode == 0, done.stderr
    sizes = [int(size.replace(",", "")) for size in re.findall(r"([\d,]+) parameters", done.stdout)]
    assert sizes[0] < sizes[1] == sizes[2]
    assert len(re.findall(r"^ +\d fine-tunes +0\.\d{3} +0\.\d{3}$", done.stdout, re.MULTILINE)) == 2
    assert "past study half: 4 completed and 0 failed trials" in done.stdout
    assert "saved" in done.stdout


def test_evaluations_are_saved_where_the_end_is_reached_earlier() -> None:
    # Under a name of its own: there is a benchmark of the same name.
    spec = importlib.util.spec_from_file_location("transfer_example", EXAMPLES / "transfer.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    evaluations_saved = module.evaluations_saved
    assert evaluations_saved([0.3, 0.5, 0.6, 0.6], [0.6, 0.6, 0.6, 0.65]) == 2
    assert evaluations_saved([0.3, 0.6], [0.594, 0.594]) == 1
    assert evaluations_saved([0.6, 0.6], [0.3, 0.5]) == -2
