"""The step by hand is the step that ``suggest`` takes."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "minimal_bo.py"


def test_example_agrees_with_suggest_and_prints_the_next_point(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(SCRIPT), run_name="__main__")  # asserts the agreement itself
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("best of 8:")
    assert float(second.split("->")[1]) > float(first.split("->")[1])


def test_example_stays_under_eighty_lines() -> None:
    assert len(SCRIPT.read_text().splitlines()) < 80
