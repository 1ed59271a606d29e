"""A short run of the benchmark of early ends."""

from __future__ import annotations

import json

import pytest
import stopping as benchmark

from llamatune_torch import Study
from llamatune_torch.problems import branin


def test_a_short_run_says_where_searches_would_have_ended(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main(["--problems", "branin", "--seeds", "1", "--evals", "22", "--fractions", "1e6", "1e-9"])
    out = capsys.readouterr().out
    _, _, row, *_ = out.splitlines()
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert [cells[0], cells[2], cells[4]] == ["branin", "20", "22"]  # at once when it may, and never
    assert "1e+06 saves 9% of the evaluations\n1e-09 saves 0% of the evaluations\n" in out
    runs = json.loads(out.splitlines()[-1])["runs"]
    assert runs[1]["regrets"] == runs[2]["regrets"]


def test_the_end_is_the_first_place_below_the_fraction() -> None:
    search = benchmark.Search(Study(branin.space), branin, [float("inf"), 3.0, 0.9, 2.0])
    assert [search.end(fraction * benchmark.stopping.FRACTION) for fraction in (0.5, 1, 4)] == [4, 3, 2]
