"""A short run of the regret benchmark, and the promise it is there to keep."""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "regret.py"


@pytest.fixture(scope="module")
def regret() -> ModuleType:
    spec = importlib.util.spec_from_file_location("regret", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["regret"] = module  # worker processes look the functions up by this name
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("problem", "share_of_random"), [("branin", 0.3), ("hartmann6", 0.6), ("mixed", 0.6)])
def test_regret_after_40_evaluations_is_far_below_random_search(
    regret: ModuleType, problem: str, share_of_random: float
) -> None:
    def median(method: str, seeds: int) -> float:
        runs = [regret.run_one(problem, method, seed, 40, {}) for seed in range(seeds)]
        return statistics.median(run["regrets"][-1] for run in runs)

    assert median("llamatune", 2) < share_of_random * median("random", 10)


@pytest.mark.parametrize("method", ["random", "optuna-tpe", "optuna-gp"])
@pytest.mark.parametrize("problem", ["switched_off", "adapters"])
def test_peers_are_given_special_values_and_conditions_in_their_own_manner(
    regret: ModuleType, problem: str, method: str
) -> None:
    if method != "random":
        pytest.importorskip("optuna", reason="the extra `bench` is not installed")
    space = regret.problem_named(problem).space
    seen = []

    def evaluate(params: dict[str, Any]) -> float:
        seen.append(params)
        assert list(space.validate(params)) == [name for name in space.names if name in params]
        return len(seen) % 5

    regret.METHODS[method](regret.problem_named(problem), evaluate, 15, 0)
    assert len(seen) == 15
    if problem == "switched_off":
        assert {params["weight_decay"] == 0 for params in seen} == {True, False}
    else:
        assert {params["method"] for params in seen} == {"full", "lora", "qlora"}


def test_script_writes_its_record_and_prints_its_table(
    regret: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "regret.json"
    command = "--seeds 2 --evals 10 --problems branin --methods llamatune random --workers 1 --output"
    regret.main([*command.split(), str(output)])
    record = json.loads(output.read_text())
    assert [(run["method"], run["seed"]) for run in record["runs"]] == [
        ("llamatune", 0), ("llamatune", 1), ("random", 0), ("random", 1)
    ]  # fmt: skip
    assert all(len(run["regrets"]) == 10 for run in record["runs"])
    assert record["environment"]["torch"] != "not installed"
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].split()[:3] == ["branin", "random", "1.000"]


@pytest.mark.skipif(
    not (SCRIPT.parents[2] / "shared" / "data").is_dir(), reason="the recorded runs are not next to this checkout"
)
def test_recorded_runs_can_be_looked_up(regret: ModuleType) -> None:
    run = regret.run_one("deberta", "random", 0, 10, {})
    assert len(run["regrets"]) == 10
    assert min(run["regrets"]) >= 0
