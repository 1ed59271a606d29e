"""A short run of the benchmark of past studies, and what it makes of sources."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from transfer import BELIEFS, main, past_of, run_one, targets_of


def test_a_short_run_compares_searches_with_and_without_a_past(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sources = ["cold", "right", "shifted", "believed"]
    main(["--families", "pretraining", "--targets", "1", "--seeds", "1", "--evals", "4", "--sources", *sources,
          "--json", str(tmp_path / "t.json")])  # fmt: skip
    table = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert table[2:] == [f"{family}: {each}" for family in ("pretraining", "all") for each in sources]
    records = json.loads((tmp_path / "t.json").read_text())
    assert [record["sources"] for record in records] == sources
    for record in records:
        trace = record["regrets"]
        assert len(trace) == 4
        assert trace == sorted(trace, reverse=True)
        assert 0 <= trace[-1] <= 10
    by_source = {record["sources"]: record["regrets"] for record in records}
    assert by_source["right"][0] < by_source["shifted"][0]


def test_sources_are_what_their_names_say() -> None:
    target = targets_of("classifying")[0]

    def trials(sources: str) -> list[tuple[float, float | None]]:
        past = past_of(target, sources, np.random.default_rng(0))
        return [(trial.params["learning_rate"], trial.value) for trial in past.trials]

    right = trials("right")
    assert len(right) == 30
    assert [value for _, value in trials("inverted")] == [-value for _, value in right if value is not None]
    assert [rate for rate, _ in trials("shifted")] == pytest.approx([rate * 10**1.5 for rate, _ in right])
    shuffled = trials("shuffled")
    assert [rate for rate, _ in shuffled] == [rate for rate, _ in right]
    assert shuffled != right
    assert sorted(str(value) for _, value in shuffled) == sorted(str(value) for _, value in right)


def test_a_run_is_the_same_again() -> None:
    first, second = (run_one("adapting", 1, 0, "right", 2, {}) for _ in range(2))
    assert first["regrets"] == second["regrets"]
    assert set(BELIEFS) == {"believed", "half a decade off", "half a decade below", "1.5 decades off"}
