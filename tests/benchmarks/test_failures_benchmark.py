"""A short run of the benchmark of walls, and its own problems by their known best points."""

from __future__ import annotations

import json
from typing import Any

import pytest
from failures import PROBLEMS, main


@pytest.mark.filterwarnings("ignore")
def test_a_short_run_compares_shares_of_failures(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--problems", "divergence", "--methods", "this", "random", "--evals", "12", "--seeds", "1"])
    *runs, head, _, this, chance, versions = capsys.readouterr().out.splitlines()
    found = [json.loads(run) for run in runs]
    assert [run["method"] for run in found] == ["this", "random"]
    assert "after the first 10" in head
    for row, run in zip((this, chance), found, strict=True):
        cells = [cell.strip() for cell in row.split("|")]
        late = sum(n >= 10 for n in run["failed"])
        assert cells[3:5] == [f"{len(run['failed'])}.0 of 12", f"{50 * late} %"]
        assert run["best"] >= PROBLEMS["divergence"].optimum
    assert json.loads(versions)["torch"]


BEST: dict[str, dict[str, Any]] = {
    "wall6": {
        "learning_rate": 2e-4, "batch_size": 16, "sequence_length": 1280, "rank": 64, "dropout": 0.1, "warmup": 0.06,
    },
    "pretraining": {
        "learning_rate": 1.5e-3, "batch_size": 19, "sequence_length": 157, "hidden": 1024, "layers": 13,
    },
    "divergence": {
        "learning_rate": 10**-0.25 * 1e-3 * 12 / 32 * 2**0.3, "optimizer": "adamw", "layers": 32, "warmup": 0.0,
        "beta2": 0.98,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", list(BEST))
def test_the_best_of_a_problem_works(name: str) -> None:
    problem = PROBLEMS[name]
    assert problem.true_value(BEST[name]) == pytest.approx(problem.optimum, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "error"), [("wall6", MemoryError), ("pretraining", MemoryError), ("divergence", FloatingPointError)]
)
def test_beyond_the_wall_a_run_fails(name: str, error: type[Exception]) -> None:
    largest = {"batch_size": 128, "sequence_length": 2048, "learning_rate": 1.0, "layers": 24, "hidden": 1024}
    with pytest.raises(error):
        PROBLEMS[name].true_value({**BEST[name], **{k: v for k, v in largest.items() if k in BEST[name]}})
