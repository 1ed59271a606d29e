"""The engine suggests what it suggested when ``golden.json`` was written; ``golden.py`` says how to renew it."""

from __future__ import annotations

import json

import golden
import pytest

from llamatune_torch.engine import outcome

RECORDED = json.loads(golden.GOLDEN.read_text())


@pytest.mark.parametrize("name", golden.PROBLEMS)
def test_suggestions_are_those_on_record(name: str) -> None:
    """Choices and integers exactly, reals to 1e-4 of their range: another processor rounds otherwise."""
    problem, trials = golden.PROBLEMS[name], RECORDED[name]
    found = [golden.differences(problem.space, *pair, 1e-4) for pair in golden.replay(problem, trials)]
    assert found == [[]] * len(trials)
    assert sum(trial["origin"] == "surrogate" for trial in trials) == golden.NUM_SUGGESTIONS


def test_the_trace_holds_what_it_is_about() -> None:
    mixed, conditional, batch = (RECORDED[name] for name in golden.PROBLEMS)
    assert any(trial["value"] is None for trial in mixed)
    assert len({trial["params"]["opt"] for trial in mixed}) == 3
    assert {len(trial["params"]) for trial in conditional} == {2, 4}
    assert any(trial["params"].get("dropout") == 0.0 for trial in conditional)
    assert len(batch) == 6 + golden.NUM_SUGGESTIONS


def test_differences_are_found() -> None:
    space = golden.PROBLEMS["mixed with failures"].space
    params = RECORDED["mixed with failures"][0]["params"]

    def found(**changes: object) -> list[str]:
        return golden.differences(space, params, {**params, **changes}, 1e-4)

    assert found() == found(lr=params["lr"] * (1 + 1e-4)) == []  # 1e-4 of its logarithm, of a range of 4.6
    assert found(lr=params["lr"] * 1.001)[0].startswith("lr: ")
    assert found(batch=params["batch"] + 1)[0].startswith("batch: ")
    assert found(opt="lion")[0].startswith("opt: ")
    assert golden.differences(space, params, {"lr": 1e-4}, 1e-4)[0].startswith("parameters: ")


def test_another_engine_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "four at a time"
    monkeypatch.setattr(outcome, "LOG_WARP_OFFSET", 3.0)
    pairs = golden.replay(golden.PROBLEMS[name], RECORDED[name])
    assert any(golden.differences(golden.PROBLEMS[name].space, *pair, 1e-4) for pair in pairs)
