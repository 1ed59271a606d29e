"""A short run of the benchmark of several objectives, and its measure by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from objectives import PROBLEMS, main, shares, values_at


@pytest.mark.filterwarnings("ignore")
def test_a_short_run_compares_this_with_botorchs_recipe(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main(["--problems", "c2_dtlz2", "--evals", "11", "--seeds", "1", "--json", str(tmp_path / "o.json")])
    table = [line.split("|")[2].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert table[2:] == ["this", "botorch", "sobol"]
    traces = json.loads((tmp_path / "o.json").read_text())
    for (trace,) in traces.values():
        assert len(trace) == 11
        assert trace == sorted(trace)
        assert 0 <= trace[-1] <= 1


def test_a_share_is_that_of_the_largest_hypervolume_and_a_limit_that_is_broken_adds_nothing() -> None:
    problem = PROBLEMS["branin_currin"]()  # its reference point is (-18, -6)
    found = [([-8.0, -5.0], [1.0]), ([-8.0, -4.0], [-1.0]), ([-17.0, -4.0], [0.0])]
    area = torch.tensor(shares(problem, found)) * problem.max_hv
    assert area.tolist() == pytest.approx([10.0, 10.0, 11.0])


def test_a_limit_is_kept_where_the_slack_is_positive() -> None:
    problem = PROBLEMS["c2_dtlz2"]()
    x = torch.full((4,), 0.5, dtype=torch.float64)
    values, (slack,) = values_at(problem, x)
    assert values == pytest.approx([-(0.5**0.5), -(0.5**0.5)])
    assert (slack >= 0) == bool(problem.is_feasible(x.unsqueeze(0)))
