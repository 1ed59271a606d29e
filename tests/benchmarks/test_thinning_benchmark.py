"""A short run of the benchmark of thinning."""

from __future__ import annotations

import pytest
import thinning as benchmark

from llamatune_torch.engine import thinning


def test_a_short_run_compares_caps(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main(["--problems", "memory_limited", "--caps", "1000", "8", "--at", "10", "16", "--seeds", "1"])
    lines = capsys.readouterr().out.splitlines()
    whole, capped = (line.split("|")[1:-1] for line in lines[2:4])
    assert [cell.strip() for cell in (*whole[:2], *capped[:2])] == ["memory_limited", "1000", "memory_limited", "8"]
    assert [float(cell) for cell in whole[2:]] != [float(cell) for cell in capped[2:]]
    assert thinning.MAX_CONDITIONED == 1000


def test_the_regret_is_that_of_the_best_so_far() -> None:
    found = benchmark.regrets(benchmark.PROBLEMS["memory_limited"], 1000, 0, [3, 6, 9])
    assert found == sorted(found, reverse=True)
    assert found[-1] >= 0
