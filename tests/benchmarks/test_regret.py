"""Short runs of the regret benchmark, and the promise it is there to keep."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import peers
import pytest
import recorded
import regret
import scores
import sklearn_problems


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "results" / "regret.jsonl"


def benchmark(output: Path, arguments: str) -> list[dict[str, Any]]:
    """The runs in the file after a benchmark in this process."""
    regret.main([*arguments.split(), "--workers", "1", "--output", str(output)])
    return regret.read_runs(output)


def keys(runs: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(run["method"], run["seed"]) for run in runs]


@pytest.mark.parametrize(("problem", "share_of_random"), [("branin", 0.3), ("hartmann6", 0.7), ("mixed", 0.6)])
def test_regret_after_25_evaluations_is_far_below_random_search(problem: str, share_of_random: float) -> None:
    def after_25(method: str, seed: int) -> float:
        return scores.curve(regret.run_one(problem, method, seed, 25), 25)[-1]

    by_chance = statistics.median(after_25("random", seed) for seed in range(20))
    assert after_25("llamatune", 0) < share_of_random * by_chance


def test_script_writes_each_run_and_prints_its_tables(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = benchmark(output, "--seeds 2 --random-seeds 3 --evals 10 --problems branin --methods llamatune random")
    assert keys(runs) == [("llamatune", 0), ("random", 0), ("llamatune", 1), ("random", 1), ("random", 2)]
    assert all(run["recommended"][-1][0] == 10 and "torch" in run["with"] for run in runs)
    summary = json.loads(output.with_suffix(".json").read_text())
    assert summary["q=1"]["random"]["mean_and_median_normalised_regret"] == {"10": [1.0, 1.0]}
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].split("|")[1:4] == [" branin  ", " random    ", " 1.000 "]


def test_the_picture_is_drawn(output: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `bench` is not installed")
    benchmark(output, "--seeds 1 --random-seeds 3 --evals 10 --problems branin --methods random --plot")
    assert output.with_suffix(".png").stat().st_size > 1000


def test_append_keeps_what_is_there_and_a_second_measurement_replaces_only_what_it_measures(output: Path) -> None:
    pytest.importorskip("optuna", reason="the extra `bench` is not installed")
    common = "--evals 10 --problems branin --random-seeds 2 --seeds"
    first = benchmark(output, f"{common} 1 --methods random optuna-tpe")
    first[0]["cpu_seconds"] = 77.0  # to be recognised
    regret.write_anew(output, first)
    more = benchmark(output, f"{common} 2 --methods random optuna-tpe --append")
    assert more[: len(first)] == first
    assert keys(more[len(first) :]) == [("optuna-tpe", 1)]
    again = benchmark(output, f"{common} 1 --methods optuna-tpe")
    assert again[0]["cpu_seconds"] == 77.0
    assert keys(again) == [("random", 0), ("random", 1), ("optuna-tpe", 0)]


def test_a_run_that_was_cut_off_in_writing_is_made_again(output: Path) -> None:
    common = "--evals 10 --problems branin --random-seeds 2 --methods random --append"
    runs = benchmark(output, common)
    output.write_text(output.read_text()[:-30])
    assert [{**run, "cpu_seconds": 0} for run in benchmark(output, common)] == [
        {**run, "cpu_seconds": 0} for run in runs
    ]


def test_four_at_a_time_are_asked_for_and_told_together(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Watched(peers.RandomSearch):
        def ask(self, q: int) -> Any:
            calls.append(f"ask {q}")
            return super().ask(q)

        def tell(self, values: Any) -> None:
            calls.append(f"tell {len(values)}")

    monkeypatch.setitem(regret.METHODS, "random", Watched)
    run = regret.run_one("branin", "random", 0, evals=10, q=4)
    assert calls == ["ask 4", "tell 4", "ask 4", "tell 4", "ask 2", "tell 2"]
    assert [n for n, _ in run["recommended"]] == [10]
    # After 10 of 20 evaluations the third batch of four is still running: what counts is known from two batches.
    longer = regret.run_one("branin", "random", 0, evals=20, q=4)
    assert longer["recommended"][0] == [10, scores.curve(longer, 8)[-1]]


def test_a_peer_that_breaks_is_a_row_that_says_so(
    output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna", reason="the extra `bench` is not installed")

    class Broken(peers.RandomSearch):
        def tell(self, values: Any) -> None:
            raise ValueError("Input y\n contains NaN.")

    monkeypatch.setitem(regret.METHODS, "optuna-gp", Broken)
    runs = benchmark(output, "--evals 10 --problems branin --seeds 1 --random-seeds 2 --methods random optuna-gp")
    assert runs[1]["error"] == "ValueError: Input y contains NaN."
    rows = [line for line in capsys.readouterr().out.splitlines() if "optuna-gp " in line and "failed" in line]
    assert len(rows) == 2
    assert all("failed: ValueError: Input y contains NaN." in row for row in rows)


def test_a_peer_that_never_answers_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(peers.RandomSearch):
        def ask(self, q: int) -> Any:
            while True:
                pass

    monkeypatch.setattr(regret, "LIMIT", 0.2)
    monkeypatch.setitem(regret.METHODS, "random", Endless)
    run = regret.run_one("branin", "random", 0, 10)
    assert run["error"] == "TimeoutError: more than 0.2 s of CPU time for one run"


def test_a_peer_that_is_not_installed_is_named(
    output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(peers.PACKAGES, "hebo", "no-such-distribution")
    assert benchmark(output, "--evals 10 --problems branin --seeds 1 --methods hebo") == []
    assert "hebo: not installed" in capsys.readouterr().err


def test_failed_runs_are_counted_and_never_look_best() -> None:
    run = regret.run_one("lora_memory", "random", 1, 30)
    assert 0 < run["failures"] < 30
    values = [regret for _, regret in run["regrets"]]
    assert min(values) >= 0


@pytest.mark.parametrize("problem", sklearn_problems.ALL, ids=lambda p: p.name)
def test_real_models_have_the_noise_of_a_seed_and_no_better_value_than_the_best_known(
    problem: sklearn_problems.FittedProblem,
) -> None:
    best = sklearn_problems.BEST_PARAMS[problem.name]
    assert problem.true_value(best) == pytest.approx(problem.optimum, rel=1e-4)
    assert problem.regret(best) >= 0
    seen = [problem.fit(best, seed) for seed in (5, 5, 6, 7, 8)]
    assert seen[0] == seen[1]
    assert 0.1 * problem.noise < statistics.stdev(seen[1:]) < 3 * problem.noise
    by_chance = regret.run_one(problem.name, "random", 0, 8)
    assert min(of for _, of in by_chance["regrets"]) > 0


@pytest.mark.skipif(not recorded.DATA.is_dir(), reason="the recorded runs are not next to this checkout")
def test_recorded_runs_can_be_looked_up_and_are_kept_out_of_the_committed_file(output: Path) -> None:
    names = " ".join(recorded.MAKERS)
    assert benchmark(output, f"--evals 10 --problems {names} --random-seeds 1 --methods random") == []
    runs = regret.read_runs(regret.beside(output))
    assert [run["problem"] for run in runs] == list(recorded.MAKERS)
    assert all(min(regret for _, regret in run["regrets"]) >= 0 for run in runs)
    assert regret.beside(output).name == "regret.recorded.jsonl"


@pytest.mark.parametrize("method", ["random", "optuna-tpe", "optuna-gp"])
@pytest.mark.parametrize("problem", ["switched_off", "adapters"])
def test_peers_are_given_special_values_and_conditions_in_their_own_manner(problem: str, method: str) -> None:
    if method != "random":
        pytest.importorskip("optuna", reason="the extra `bench` is not installed")
    space = regret.problem_named(problem).space
    searcher = peers.METHODS[method](regret.problem_named(problem), 15, 0)
    seen: list[dict[str, Any]] = []
    for value in range(15):
        (params,) = searcher.ask(1)
        assert space.validate(params) == params
        seen.append(params)
        searcher.tell([float(value % 5)])
    if problem == "switched_off":
        assert {params["weight_decay"] == 0 for params in seen} == {True, False}
    else:
        assert {params["method"] for params in seen} == {"full", "lora", "qlora"}


def test_a_library_that_is_not_told_of_conditions_is_a_row_that_says_so() -> None:
    with pytest.raises(NotImplementedError, match=r"has when="):
        peers.plain(regret.problem_named("adapters").space)
    with pytest.raises(NotImplementedError, match=r"has special="):
        peers.plain(regret.problem_named("switched_off").space)
