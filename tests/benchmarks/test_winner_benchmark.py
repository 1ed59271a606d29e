"""A short run of the benchmark of winners."""

from __future__ import annotations

import json

import pytest
import winner as benchmark


def test_a_short_run_compares_reports_with_fresh_runs(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main(["--problems", "crossing_noisy", "--studies", "2", "--evals", "14", "--before", "1"])
    out = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in out[2:4]] == ["crossing_noisy", "all"]
    one, other = json.loads(out[-1])["runs"]["crossing_noisy"]
    assert (one["before"] is None, other["before"] is None) == (False, True)
    assert 4 <= one["extra"] <= 9
    assert one["regret"] >= 0
