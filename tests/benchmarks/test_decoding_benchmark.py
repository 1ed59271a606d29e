"""A short run of the benchmark of decoding, and what its tables count."""

from __future__ import annotations

import math

import pytest
from decoding import SPACE, Task, as_trace, main, quality, tokens_to_near


def test_a_short_run_has_both_tables(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--seeds", "1", "--studies", "1", "--methods", "full", "random"])
    rows = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert rows == ["method", "---", "full", "random", "true gain over the default", "---", *["none"] * 2,
                    *["2 points"] * 2]  # fmt: skip


def test_the_best_setting_is_known_and_the_default_is_worse() -> None:
    assert quality({"temperature": 0.7, "top_p": 0.9, "penalty": 1.1}) == 0.6
    assert quality(SPACE.default or {}) < 0.6


def test_tokens_count_until_what_would_be_handed_over_stays_good() -> None:
    assert tokens_to_near([(200, 0.5), (400, 0.595), (600, 0.58), (800, 0.6)]) == 4.0
    assert tokens_to_near([(200, 0.599)]) == 1.0
    assert tokens_to_near([(200, 0.5)]) == math.inf


def test_a_trace_has_the_best_so_far_in_the_order_of_tokens() -> None:
    task = Task(0)
    settings = [{"temperature": t, "top_p": 0.9, "penalty": 1.1} for t in (1.0, 0.7, 2.0)]
    for params in settings:
        task.scores(task.prompts[:10], params)
    trace = as_trace(task, list(zip(settings, [0.5, 0.6, 0.1], strict=True)))
    assert trace == [(10, quality(settings[0])), (20, quality(settings[1]))]
