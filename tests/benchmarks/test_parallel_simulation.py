"""A short run of the simulated workers: what it counts, and that no two of them are sent to the same place."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "parallel.py"


@pytest.fixture(scope="module")
def parallel() -> ModuleType:
    spec = importlib.util.spec_from_file_location("parallel_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["parallel_benchmark"] = module
    spec.loader.exec_module(module)
    return module


def test_script_runs_records_and_does_not_repeat_itself(
    parallel: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "parallel.jsonl"
    options = ["--seeds", "1", "--evals", "20", "--problems", "branin", "--output", str(output)]
    parallel.main(options)
    one, many = [json.loads(line) for line in output.read_text().splitlines()]
    assert (one["workers"], one["evals"], many["workers"], many["evals"]) == (1, 20, 8, 30)
    # Eight at a time: half as many more, and much sooner; the last one may be a long one.
    assert 0 < many["ends"][-1] < one["ends"][-1] / 2
    assert one["closest"] is None
    assert many["closest"] > 0.001
    table = capsys.readouterr().out
    before = output.read_text()
    parallel.main(options)
    assert output.read_text() == before
    assert capsys.readouterr().out == table


def test_workers_run_asynchronously_and_durations_belong_to_the_trials(parallel: ModuleType) -> None:
    problem = parallel.PROBLEMS["branin"]
    one, three = (parallel.simulate(problem, workers, seed=0, evals=4) for workers in (1, 3))
    durations = [end - start for start, end in zip([0, *one["ends"]], one["ends"], strict=False)]
    free = sorted(durations[:3])
    # The fourth begins when the first of three ends.
    expected = sorted([*durations[:3], free[0] + durations[3]])
    assert three["ends"] == pytest.approx(expected, abs=0.01)


def test_ratios_compare_when_the_same_median_regret_is_reached(parallel: ModuleType) -> None:
    def run(workers: int, seed: int, regrets: list[list[float]], seconds: float, evals: int) -> dict[str, object]:
        ends = [seconds * (i + 1) for i in range(evals)]
        return {"problem": "p", "workers": workers, "seed": seed, "evals": evals, "regrets": regrets, "ends": ends}

    serial = [run(1, seed, [[1, 1.0], [10, 0.5]], 1.0, 20) for seed in (0, 1)]
    parallel_runs = [run(8, seed, [[1, 1.0], [15, 0.4]], 0.2, 30) for seed in (0, 1, 2)]
    assert parallel.compare([*serial, *parallel_runs], "p", 20) == pytest.approx((1.5, 3.0 / 10.0))
    never = [run(8, seed, [[1, 1.0]], 0.2, 30) for seed in (0, 1)]
    assert parallel.compare([*serial, *never], "p", 20) == pytest.approx((31 / 10, 6.0 / 10.0))
    assert parallel.compare([*serial, *never], "p", 30) is None
