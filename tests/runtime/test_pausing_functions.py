"""Functions that pause: generators and ``should_pause``, in this thread, in processes, in pools and on clusters."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from strategies import make_trial

from llamatune_torch import Cause, LlamaTune, Outcome, OutcomeError, TrialState, TrialStateError, report
from llamatune_torch.curve import Curve
from llamatune_torch.runtime.evaluation import OnParams, current_trial, run_trial, should_pause
from llamatune_torch.space import SearchSpace

SPACE = {"x": (0.0, 1.0), "y": (0.0, 1.0)}


def generator(params: dict[str, Any]) -> Iterator[tuple[float, float, float]]:
    for step in range(1, 11):
        yield step, params["x"] + step / 10, step / 10


def asks(params: dict[str, Any]) -> float:
    trial = current_trial()
    done = 0 if trial.curve.last is None else round(trial.curve.last.step)
    for step in range(done + 1, 11):
        report(step, params["x"] + step / 10, step / 10)
        if should_pause():
            break
    return params["x"] + 1


def deaf(params: dict[str, Any]) -> float:
    for step in range(1, 11):
        report(step, params["x"] + step / 10, step / 10)
    return params["x"] + 1


def tuner(function: Any, max_evals: int = 4, **changes: Any) -> LlamaTune:
    settings = {"n_initial": 10**6, "progress": False, "strategy": "screen", **changes}
    return LlamaTune(SPACE, function, max_evals, **settings)


def evaluated(function: Any, until: float = 1.0, **fields: Any) -> Any:
    trial = make_trial(0, {"x": 0.5, "y": 0.5}, state=TrialState.RUNNING, until=until, **fields)
    return run_trial(OnParams(function, SearchSpace(SPACE)), trial)


# --- One evaluation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [generator, asks])
@pytest.mark.parametrize(("until", "steps"), [(0.1, 1), (0.25, 3), (0.4, 4), (0.95, 10), (1.0, 10)])
def test_a_run_pauses_at_the_first_report_at_or_beyond_its_share(function: Any, until: float, steps: int) -> None:
    outcome = evaluated(function, until)
    assert (len(outcome.curve), outcome.paused) == (steps, steps < 10)
    assert outcome.value == (None if steps < 10 else 1.5)
    assert outcome.cost >= 0


def test_a_function_that_never_pauses_trains_to_its_end() -> None:
    outcome = evaluated(deaf, 0.1)
    assert (outcome.paused, outcome.value, len(outcome.curve)) == (False, 1.5, 10)


def test_who_is_told_to_pause_and_trains_on_has_finished() -> None:
    def ignores(params: dict[str, Any]) -> float:
        report(1, 0.5, 0.1)
        assert should_pause()
        report(10, 0.75, 1.0)
        return 0.75

    outcome = evaluated(ignores, 0.1)
    assert (outcome.paused, outcome.value) == (False, 0.75)


def test_a_failure_at_a_pause_is_a_failure() -> None:
    def fails(params: dict[str, Any]) -> Outcome:
        report(1, 0.5, 0.1)
        assert should_pause()
        return Outcome.failure("out of memory")

    outcome = evaluated(fails, 0.1)
    assert (outcome.paused, outcome.cause) == (False, Cause.OUT_OF_MEMORY)


def test_a_run_to_the_end_that_pauses_is_a_mistake_with_a_name() -> None:
    error = evaluated(lambda params: Outcome(paused=True))
    assert isinstance(error, OutcomeError)
    assert "trial 0 has paused, but was started to train to its end" in str(error)


def test_a_generator_that_is_closed_can_save_its_state() -> None:
    ended = []

    def saves(params: dict[str, Any]) -> Iterator[tuple[int, float, float]]:
        step = 0
        try:
            for step in range(1, 11):
                yield step, 0.5, step / 10
        except GeneratorExit:
            ended.append(("closed", step, current_trial().first))
        finally:
            ended.append(("over", step, current_trial().first))

    assert evaluated(saves, 0.3, retry_of=7).paused
    assert ended == [("closed", 3, 7), ("over", 3, 7)]


def _raises(params: dict[str, Any]) -> Iterator[Any]:
    yield 1, 0.5, 0.1
    raise ValueError("broken")


def _raises_when_closed(params: dict[str, Any]) -> Iterator[Any]:
    try:
        yield 1, 0.5, 0.5
    finally:
        raise ValueError("the disk is full")


def _goes_on(params: dict[str, Any]) -> Iterator[Any]:
    while True:
        try:
            yield 1, 0.5, 0.5
        except GeneratorExit:
            continue


@pytest.mark.parametrize(
    ("function", "reason"), [(_raises, "ValueError"), (_raises_when_closed, "ValueError"), (_goes_on, "RuntimeError")]
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of the one that cannot be closed
def test_errors_of_a_generator_are_failures_of_its_trial(function: Any, reason: str) -> None:
    outcome = evaluated(function, 0.5)
    assert (outcome.reason, outcome.paused, len(outcome.curve)) == (reason, False, 1)


@pytest.mark.parametrize("bad", [0.5, (1,), "abc", [1, 0.5], (1, 2, 3, 4), None])
def test_a_generator_of_anything_else_is_a_mistake_with_a_name(bad: Any) -> None:
    def yields(params: dict[str, Any]) -> Iterator[Any]:
        yield bad

    assert isinstance(evaluated(yields), OutcomeError)


def test_a_generators_score_is_what_it_returns_or_its_last_value() -> None:
    def returns(params: dict[str, Any]) -> Any:
        yield 1, 0.5
        return 0.9

    def has_nothing(params: dict[str, Any]) -> Any:
        return
        yield

    assert evaluated(returns).value == 0.9
    assert evaluated(generator).value == 1.5
    assert "no points" in str(evaluated(has_nothing))


def test_a_run_that_goes_on_begins_with_its_curve_and_may_report_steps_again() -> None:
    former = Curve((1.0, 2.0, 3.0), (0.1, 0.2, 0.3), (0.1, 0.2, 0.3))
    resumed = {"curve": former, "pauses": 1, "reached": 0.3}
    assert evaluated(asks, 0.5, **resumed).curve.values[:4] == (0.1, 0.2, 0.3, 0.9)
    anew = evaluated(generator, 0.5, **resumed)  # has lost its checkpoint
    assert anew.curve.steps == (1.0, 2.0, 3.0, 4.0, 5.0)
    assert anew.curve.values[0] == 0.6

    def from_two(params: dict[str, Any]) -> Iterator[Any]:
        yield 2, 0.9, 0.2
        yield 5, 0.8, 0.5

    assert evaluated(from_two, 0.5, **resumed).curve.values == (0.1, 0.9, 0.8)
    silent = evaluated(lambda params: 0.7, **resumed)
    assert (silent.value, silent.curve) == (0.7, None)  # the record keeps its own


@pytest.mark.parametrize("function", [current_trial, should_pause])
def test_outside_of_an_evaluation_there_is_no_trial(function: Callable[[], Any]) -> None:
    with pytest.raises(TrialStateError, match="outside of an evaluation"):
        function()


# --- Whole searches --------------------------------------------------------------------------------------------------


def facts(optimizer: LlamaTune) -> list[Any]:
    return [
        (t.params, t.state, t.until, t.reached, t.pauses, t.value, t.curve.values, t.seed)
        for t in optimizer.study.trials
    ]


def alone(function: Any = generator) -> list[Any]:
    optimizer = tuner(function)
    optimizer.optimize()
    assert len(optimizer.study.completed) == 2
    assert optimizer.study.spent == pytest.approx(3.8)
    return facts(optimizer)


def test_both_kinds_of_functions_make_the_same_record() -> None:
    assert alone(asks) == alone(generator)


@pytest.mark.parametrize("kind", ["process", "pool", "threads"])
@pytest.mark.parametrize("function", [generator, asks])
def test_the_same_decisions_wherever_trials_run(kind: str, function: Any) -> None:
    optimizer = tuner(function)
    pools: dict[str, Callable[[], Executor]] = {
        "pool": lambda: ProcessPoolExecutor(1, get_context("spawn")),
        "threads": lambda: ThreadPoolExecutor(1),
    }
    if kind in pools:
        with pools[kind]() as pool:
            optimizer.optimize(executor=pool)
    else:
        optimizer.optimize(n_workers=1)
    assert facts(optimizer) == alone()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["dask", "ray"])
def test_the_same_decisions_on_each_cluster(engine: str, tmp_path: Path) -> None:
    if importlib.util.find_spec({"dask": "distributed"}.get(engine, engine)) is None:
        pytest.skip(f"the extra `{engine}` is not installed")
    root = Path(__file__).parents[2]
    program = tmp_path / "program.py"
    program.write_text(
        "import json, sys\nfrom parallel import started\nfrom llamatune_torch import LlamaTune\n"
        "def generator(params):\n    for step in range(1, 11):\n"
        "        yield step, params['x'] + step / 10, step / 10\n"
        "if __name__ == '__main__':\n"
        "    tuner = LlamaTune({'x': (0.0, 1.0), 'y': (0.0, 1.0)}, generator, 4, n_initial=10**6, strategy='screen')\n"
        "    with started(sys.argv[1], 1) as where:\n        tuner.optimize(**where)\n"
        "    facts = [[t.params, t.state, t.until, t.reached, t.pauses] for t in tuner.study.trials]\n"
        "    print('facts', json.dumps(facts))\n"
    )
    done = subprocess.run(
        [sys.executable, str(program), engine],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{root}:{root / 'examples'}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("facts ")]
    assert json.loads(line.removeprefix("facts ")) == json.loads(json.dumps([fact[:5] for fact in alone()]))


@pytest.mark.parametrize("where", [{}, {"n_workers": 3}])
def test_a_function_that_never_pauses_keeps_the_budget(where: dict[str, Any]) -> None:
    optimizer = tuner(deaf, 5)
    optimizer.optimize(**where)
    assert len(optimizer.study.completed) == len(optimizer.study.trials) == optimizer.study.spent == 5


def test_a_pause_without_an_end_in_sight_ends() -> None:
    """It says that it has paused, whatever it is asked for, and never gets any further."""

    def liar(params: dict[str, Any]) -> Any:
        report(1, params["x"], 0.1)
        return Outcome(paused=True) if current_trial().until < 1 else params["x"]

    optimizer = tuner(liar)
    optimizer.optimize()
    assert optimizer.study.spent <= 4 + 1e-9


def test_nan_at_a_pause_ends_the_run_as_diverged() -> None:
    def breaks(params: dict[str, Any]) -> Iterator[Any]:
        yield 1, math.nan if params["x"] < 0.5 else params["x"], 0.1
        yield 10, params["x"], 1.0

    optimizer = tuner(breaks, 6)
    optimizer.optimize()
    assert {t.cause for t in optimizer.study.failed} == {Cause.DIVERGED}
    assert all(t.params["x"] < 0.5 for t in optimizer.study.failed)
