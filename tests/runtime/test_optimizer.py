"""The one mutable object: the loop, its ends, ask and tell."""

from __future__ import annotations

import copy
import io
import itertools
import logging
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llamatune_torch import (
    CallbackWarning,
    EvaluationError,
    Integer,
    LlamaTune,
    NoCompletedTrialError,
    Outcome,
    OutcomeError,
    ParamsError,
    Real,
    SearchSpace,
    SettingsError,
    SpaceError,
    StorageError,
    Trial,
    problems,
    report,
)
from llamatune_torch.engine.recommend import recommend
from llamatune_torch.problems import Problem
from llamatune_torch.runtime.evaluation import OnParams

SPACE = {"x": Real(-1, 1), "n": Integer(1, 8)}


CLASSIC = {
    "learning_rate": Real(1e-5, 5e-5, prior="log-uniform"),
    "batch_size": Integer(8, 32),
    "num_epochs": Integer(3, 10),
    "weight_decay": Real(0, 0.1, prior="uniform"),
}


def hill(params: dict[str, Any]) -> float:
    return -((params["x"] - 0.3) ** 2) - 0.01 * params["n"]


def tuner(function: Callable[[dict[str, Any]], Any] | None = hill, max_evals: int = 4, **changes: Any) -> LlamaTune:
    """By default all trials are from the Sobol sequence: no fits, so it costs nothing."""
    return LlamaTune(SPACE, function, max_evals, **{"n_initial": 100, "progress": False, **changes})


def states(optimizer: LlamaTune) -> list[str]:
    return [trial.state.value for trial in optimizer.study.trials]


class Script:
    """An objective that does what a list says: returns a value, or raises."""

    def __init__(self, *acts: Any) -> None:
        self.acts = list(acts)
        self.seen: list[dict[str, Any]] = []

    def __call__(self, params: dict[str, Any]) -> Any:
        self.seen.append(params)
        act = self.acts[len(self.seen) - 1]
        if isinstance(act, BaseException):
            raise act
        return act


# --- The call of the classic document ----------------------------------------------------------------------------


def test_the_classic_call_works_as_written(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llamatune_torch")

    def model_eval_fn(params: dict[str, Any]) -> float:
        return 0.9 - (params["learning_rate"] * 1e5 - 3) ** 2 / 50 - params["weight_decay"]

    param_space = CLASSIC
    optimizer = LlamaTune(param_space, model_eval_fn, max_evals=8)
    best_params, best_score = optimizer.optimize()

    assert list(best_params) == list(param_space)
    assert best_score == model_eval_fn(best_params) == max(t.value or 0 for t in optimizer.study.trials)
    assert [t.origin for t in optimizer.study.trials] == ["sobol"] * 5 + ["surrogate"] * 3
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 8
    first = optimizer.study.trials[0]
    assert first.value is not None
    assert lines[0].startswith(f"trial 0: {{'learning_rate': {first.params['learning_rate']:.4g}, 'batch_size': ")
    assert f"}} -> {first.value:.4g} | best" in lines[0]
    assert lines[-1].startswith("trial 7: ")


def test_a_search_is_repeated_by_its_seed() -> None:
    def run(seed: int) -> list[dict[str, Any]]:
        optimizer = tuner(max_evals=5, n_initial=3, seed=seed)
        optimizer.optimize()
        return [trial.params for trial in optimizer.study.trials]

    assert run(1) == run(1) != run(2)


@pytest.mark.parametrize("name", ["switched_off", "adapters"])
def test_switches_and_branches_of_a_space_are_set_right(name: str) -> None:
    """Special values that are best, others that are not; a method among others with parameters of their own."""
    problem: Problem = getattr(problems, name)
    optimizer = LlamaTune(problem.space, problem.true_value, 30, direction=problem.direction, seed=1, progress=False)
    best_params, _ = optimizer.optimize()
    assert problem.regret(best_params) < 0.15
    if name == "adapters":
        assert best_params["method"] == "lora"
    else:
        assert best_params["weight_decay"] == 0
        assert best_params["dropout"] > 0
        assert best_params["warmup_steps"] > 0


def test_minimising_returns_the_smallest_value() -> None:
    optimizer = tuner(Script(0.5, 0.2, 0.9, 0.4), direction="minimize")
    best_params, best_value = optimizer.optimize()
    assert best_value == 0.2
    assert best_params == optimizer.study.trials[1].params


def test_initial_points_are_evaluated_first_in_order() -> None:
    script = Script(0.1, 0.2, 0.3)
    tuner(script, 3, initial_points=[{"x": 0.5, "n": 8}, {"n": 1, "x": -1}]).optimize()
    assert script.seen[:2] == [{"x": 0.5, "n": 8}, {"x": -1.0, "n": 1}]


def test_the_default_is_evaluated_first_and_compared_with_in_the_end() -> None:
    script = Script(0.0, 1.0, 3.0)
    tuner = LlamaTune(
        SearchSpace(SPACE, default={"x": 0.5, "n": 8}), script, 3, default={"x": 0, "n": 2}, initial_points=[{"n": 1}]
    )
    tuner.optimize()
    assert script.seen[0] == {"x": 0.0, "n": 2}
    assert [trial.origin for trial in tuner.study.trials] == ["default", "initial", "sobol"]
    assert tuner.study.summary().endswith("better than the default (trial 0) by 3")
    assert tuner.recommendation().default == tuner.study.trials[0]


def test_the_function_may_change_its_dict_without_changing_the_record() -> None:
    def careless(params: dict[str, Any]) -> float:
        params["x"] = "overwritten"
        return 1.0

    optimizer = tuner(careless, 1)
    best_params, _ = optimizer.optimize()
    assert isinstance(best_params["x"], float)


def test_trials_record_times_cost_and_a_seed_of_their_own() -> None:
    before = time.time()
    optimizer = tuner(lambda params: time.sleep(0.02) or 1.0, 2)
    optimizer.optimize()
    first, second = optimizer.study.trials
    assert first.seed != second.seed
    assert first.cost is not None
    assert 0.02 <= first.cost < 5
    assert first.started is not None
    assert first.finished is not None
    assert before <= first.started < first.finished <= time.time()


# --- Failures ----------------------------------------------------------------------------------------------------


def test_an_exception_is_a_failed_trial_with_its_traceback_and_the_search_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    optimizer = tuner(Script(0.5, ValueError("too hot"), 0.7, math.nan))
    assert optimizer.optimize()[1] == 0.7
    assert states(optimizer) == ["complete", "failed", "complete", "failed"]
    _, raised, _, nan = optimizer.study.trials
    assert raised.reason == "ValueError"
    assert raised.error is not None
    assert raised.error.startswith("Traceback (most recent call last)")
    assert raised.error.endswith("ValueError: too hot")
    assert raised.value is None
    assert nan.reason == "nan"
    assert [r.getMessage().split("} ")[1] for r in caplog.records if r.levelno == logging.WARNING] == [
        "failed: ValueError (ValueError: too hot)",
        "failed: nan (the value is nan)",
    ]


def test_out_of_memory_is_named() -> None:
    optimizer = tuner(Script(torch.OutOfMemoryError("CUDA out of memory."), Outcome.failure("out of memory"), 1.0), 3)
    optimizer.optimize()
    assert optimizer.study.failures_by_reason() == {"out of memory": 2}


def test_nan_on_every_trial_is_an_error_that_counts_the_reasons() -> None:
    optimizer = tuner(Script(math.nan, math.nan, RuntimeError("boom"), math.nan))
    message = r"no trial has completed: 4 of 4 failed \(nan: 3, RuntimeError: 1\); .*of trial 0: the value is nan"
    with pytest.raises(NoCompletedTrialError, match=message):
        optimizer.optimize()
    assert len(optimizer.study.failed) == 4


def test_a_string_score_is_an_error_at_once_and_leaves_nothing_running() -> None:
    script = Script(math.nan, "0.93")
    optimizer = tuner(script)
    with pytest.raises(OutcomeError, match=r"must return a number or an Outcome, but got '0.93' \(str\)"):
        optimizer.optimize()
    assert len(script.seen) == 2
    assert states(optimizer) == ["failed", "lost"]


def misbehave(do: Callable[[], Any]) -> Callable[[dict[str, Any]], Any]:
    """A function that works the first and the last of three times."""
    calls = itertools.count()
    return lambda params: do() if next(calls) == 1 else 0.5


@pytest.mark.parametrize(
    ("do", "reason"),
    [
        (lambda: "0.93", "OutcomeError"),
        (lambda: torch.zeros((), device="meta"), "NotImplementedError|RuntimeError"),
        (lambda: Outcome(error=ValueError()), "OutcomeError"),
        (lambda: Outcome(0.5, reason=3), "OutcomeError"),
        (lambda: Outcome(0.5, notes={"a": object()}), "OutcomeError"),
        (lambda: Outcome(0.5, curve=[1, 2]), "OutcomeError"),
        (lambda: report(2, 0.5) or report(1, 0.5), "OutcomeError"),
        (lambda: report(1, 0.5, 1.5), "OutcomeError"),
        (lambda: sys.exit(1), "SystemExit"),
        (lambda: 10**400, "infinite"),
    ],
)
def test_whatever_one_trial_does_is_its_own_failure_once_another_has_completed(do: Any, reason: str) -> None:
    optimizer = tuner(misbehave(do), 3)
    optimizer.optimize()
    assert states(optimizer) == ["complete", "failed", "complete"]
    assert re.fullmatch(reason, str(optimizer.study.trials[1].reason))


def broken(params: dict[str, Any]) -> float:
    return float(params["learning_rate"])


def test_the_same_exception_three_times_before_anything_completes_ends_the_search_with_its_traceback() -> None:
    optimizer = tuner(broken, 12)
    with pytest.raises(
        EvaluationError, match=r"(?s)3 trials in a row raised the same KeyError.*trial 2:\nTraceback.*ra"
    ):
        optimizer.optimize()
    assert states(optimizer) == ["failed"] * 3
    assert optimizer.study.pending == []
    again = tuner(broken, 12)
    with pytest.raises(EvaluationError):  # as tune() does
        again.run(OnParams(broken, again.study.space))


def test_exceptions_do_not_end_a_search_in_which_runs_have_paused() -> None:
    """A run that has paused shows, as one that has completed, that the function works."""
    started: list[float] = []

    def train(params: dict[str, Any]) -> Iterator[tuple[int, float, float]]:
        started.append(params["x"])
        if 2 <= len(started) <= 5:
            raise KeyError("too little data")
        for step in range(1, 11):
            yield step, -1 / step, step / 10

    optimizer = tuner(train, 12, strategy="screen")
    optimizer.optimize()
    assert states(optimizer)[1:5] == ["failed"] * 4
    assert len(optimizer.study.completed) > 2


def test_exceptions_that_differ_or_speak_of_the_parameters_do_not_end_the_search() -> None:
    """Of another type, from another line, from want of memory, of divergence, or said by the function itself."""
    oom, diverged = MemoryError(), FloatingPointError()
    script = Script(*[oom] * 4, *[diverged] * 4, *[math.nan] * 4, *[Outcome.failure("too hot")] * 4)
    with pytest.raises(NoCompletedTrialError):
        tuner(script, 16).optimize()
    script = Script(ValueError(), ValueError(), TypeError(), ValueError(), ValueError(), 0.5, *[ValueError()] * 4)
    assert tuner(script, 10).optimize()[1] == 0.5


def test_max_failures_ends_the_search_once_more_have_failed(caplog: pytest.LogCaptureFixture) -> None:
    optimizer = tuner(Script(0.5, math.nan, ValueError(), math.nan, 0.6, 0.7), 6, max_failures=2)
    assert optimizer.optimize()[1] == 0.5
    assert states(optimizer) == ["complete", "failed", "failed", "failed"]
    assert caplog.records[-1].levelname == "ERROR"
    assert "stopped: 3 trials failed, max_failures=2: {'nan': 2, 'ValueError': 1}" in caplog.records[-1].getMessage()


def test_max_cost_ends_the_search_once_all_runs_together_have_cost_so_much(caplog: pytest.LogCaptureFixture) -> None:
    optimizer = tuner(lambda params: Outcome(0.5, cost=10.0), 9, max_cost=25.0)
    lost = optimizer.ask()
    optimizer.abandon(lost, "taken away")  # its seconds count too, and are few
    with caplog.at_level(logging.INFO):
        optimizer.optimize()
    assert len(optimizer.study.completed) == 3
    assert optimizer.study.cost == pytest.approx(30.0, abs=5)
    assert "stopped: max_cost=25 is reached, with 30" in caplog.records[-1].getMessage()
    assert optimizer.study.summary().startswith("4 trials (3 complete, 1 lost), 30.")


def test_without_max_failures_any_number_may_fail() -> None:
    optimizer = tuner(Script(*[math.nan] * 9, 0.5), 10)
    assert optimizer.optimize()[1] == 0.5


def test_a_diverged_run_is_a_value_on_the_bad_side() -> None:
    optimizer = tuner(Script(0.5, math.inf, 0.4), 3, direction="minimize")
    assert optimizer.optimize()[1] == 0.4
    assert optimizer.study.trials[1].value == math.inf


# --- Ends --------------------------------------------------------------------------------------------------------


def test_ctrl_c_returns_the_best_so_far_and_keeps_the_record(caplog: pytest.LogCaptureFixture) -> None:
    optimizer = tuner(Script(0.5, 0.7, KeyboardInterrupt()))
    assert optimizer.optimize()[1] == 0.7
    assert optimizer.interrupted
    assert states(optimizer) == ["complete", "complete", "lost"]
    assert optimizer.study.trials[2].reason == "interrupted"
    assert "interrupted after 2 finished trials" in caplog.text


def test_ctrl_c_before_anything_completed_is_passed_on() -> None:
    optimizer = tuner(Script(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        optimizer.optimize()
    assert states(optimizer) == ["lost"]


def test_after_ctrl_c_the_search_can_be_resumed_and_a_lost_trial_costs_no_budget() -> None:
    optimizer = tuner(Script(0.5, KeyboardInterrupt(), 0.6, 0.7, 0.8))
    optimizer.optimize()
    assert optimizer.optimize()[1] == 0.8
    assert not optimizer.interrupted
    assert states(optimizer) == ["complete", "lost", "complete", "complete", "complete"]


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_ends_a_real_process_cleanly() -> None:
    code = (
        "import time\n"
        "from llamatune_torch import LlamaTune\n"
        "def slow(params):\n"
        "    if len(optimizer.study.trials) == 3:\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(60)\n"
        "    return params['x']\n"
        "optimizer = LlamaTune({'x': (0.0, 1.0)}, slow, max_evals=10)\n"
        "params, value = optimizer.optimize()\n"
        "print(len(optimizer.study.completed), value == params['x'], optimizer.interrupted)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0
    assert out == "2 True True\n"
    assert "Traceback" not in err
    assert err.splitlines()[-1] == "interrupted after 2 finished trials"
    assert "trial 1: {'x': " in err  # a plain script sees its lines without setting up logging


def test_the_timeout_starts_no_further_trial(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.INFO, "llamatune_torch")
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def slow(params: dict[str, Any]) -> float:
        now[0] += 4.0
        return 1.0

    optimizer = tuner(slow, 50, timeout=10)
    optimizer.optimize()
    assert len(optimizer.study.trials) == 3  # started at 0, 4 and 8 seconds
    assert "stopped: the timeout of 10 s has passed" in caplog.text


def test_max_evals_counts_failed_trials_but_not_added_ones() -> None:
    optimizer = tuner(Script(0.5, math.nan, 0.6), 3)
    optimizer.add_trial({"x": 0.9, "n": 1}, 0.1)
    optimizer.add_trial({"x": 0.8, "n": 1}, math.nan)
    optimizer.optimize()
    assert [trial.origin for trial in optimizer.study.trials] == ["added"] * 2 + ["sobol"] * 3


def test_optimizing_again_evaluates_nothing_and_with_a_larger_budget_goes_on_as_one_long_run() -> None:
    whole = tuner(max_evals=6, n_initial=4)
    whole.optimize()
    parts = tuner(max_evals=3, n_initial=4)
    parts.optimize()
    assert parts.optimize() == (parts.study.best_params, parts.study.best_value)
    assert len(parts.study.trials) == 3
    parts.limits = replace(parts.limits, max_evals=6)
    parts.optimize()
    assert [trial.params for trial in parts.study.trials] == [trial.params for trial in whole.study.trials]


def test_a_finite_space_ends_the_search_when_every_point_is_done(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llamatune_torch")
    optimizer = LlamaTune({"c": ["a", "b", "c"]}, lambda params: ord(params["c"]), max_evals=10, progress=False)
    assert optimizer.optimize() == ({"c": "c"}, 99.0)
    assert len(optimizer.study.trials) == 3
    assert "stopped early: all 3 points of the space are done or running" in caplog.text


# --- Callbacks ---------------------------------------------------------------------------------------------------


def test_callbacks_see_each_finished_trial_and_may_stop_the_search() -> None:
    seen: list[tuple[int, str]] = []

    def watch(optimizer: LlamaTune, trial: Trial) -> None:
        seen.append((trial.number, trial.state.value))
        assert optimizer.study.trials[trial.number] == trial
        if len(seen) == 2:
            optimizer.stop()

    optimizer = tuner(Script(math.nan, 0.5, 0.6), callbacks=[watch])
    optimizer.optimize()
    assert seen == [(0, "failed"), (1, "complete")]


def test_a_callback_that_raises_is_a_warning_and_the_search_and_other_callbacks_go_on() -> None:
    seen: list[int] = []

    def broken(optimizer: LlamaTune, trial: Trial) -> None:
        raise RuntimeError("the plot has no axes")

    optimizer = tuner(Script(0.5, 0.6), 2, callbacks=[broken, lambda _, trial: seen.append(trial.number)])
    with pytest.warns(CallbackWarning, match=r"callback .*broken.* raised RuntimeError\('the plot has no axes'\)"):
        optimizer.optimize()
    assert seen == [0, 1]


def test_ctrl_c_in_a_callback_returns_the_best_so_far_too() -> None:
    def interrupted(optimizer: LlamaTune, trial: Trial) -> None:
        raise KeyboardInterrupt

    optimizer = tuner(Script(0.5, 0.6), 2, callbacks=[interrupted])
    try:
        assert optimizer.optimize()[1] == 0.5
    except KeyboardInterrupt:  # pytest would take it for its own
        pytest.fail("Ctrl-C was passed on")


# --- Bad arguments, before anything is evaluated -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"max_evals": 0}, SettingsError, r"max_evals must be an integer >= 1, but got 0"),
        ({"max_evals": 2.5}, SettingsError, r"max_evals must be an integer >= 1, but got 2.5"),
        ({"max_evals": True}, SettingsError, r"max_evals must be an integer >= 1, but got True"),
        ({"timeout": 0}, SettingsError, r"timeout must be a number of seconds > 0, .* but got 0"),
        ({"timeout": math.nan}, SettingsError, r"timeout must be a number of seconds > 0, .* but got nan"),
        ({"timeout": "1 week"}, SettingsError, r"timeout must be a number of seconds > 0, .* but got '1 week'"),
        ({"max_failures": -1}, SettingsError, r"max_failures must be an integer >= 0, but got -1"),
        ({"max_failures": 0.5}, SettingsError, r"max_failures must be an integer >= 0, but got 0.5"),
        ({"direction": "max"}, SettingsError, r"direction must be 'maximize' or 'minimize', but got 'max'"),
        ({"function": 3}, SettingsError, r"model_eval_fn must be callable, but got 3"),
        ({"callbacks": ["print"]}, SettingsError, r"callbacks must be callable or a Listener, but got 'print'"),
        ({"acquisition": "EI"}, SettingsError, r"acquisition must be one of .*, but got 'EI'"),
        ({"seed": -3}, SettingsError, r"seed must be an integer >= 0, but got -3"),
        ({"n_initial": -3}, SettingsError, r"n_initial must be an integer >= 0, but got -3"),
        ({"device": "cuda:99"}, SettingsError, r"device 'cuda:99' is not there"),
        (
            {"initial_points": [{"x": 0.5, "n": 1}, {"x": 2, "n": 1}]},
            ParamsError,
            r"initial_points\[1\]: parameter 'x' must lie in \[-1, 1\], but got 2",
        ),
        ({"default": {"x": 0.5}}, ParamsError, r"default: missing parameters \['n'\]"),
        ({"initial_points": [{"y": 0.5}]}, ParamsError, r"initial_points\[0\]: unknown parameters \['y'\]"),
        ({"initial_points": [{}]}, ParamsError, r"initial_points\[0\]: .* a dict that is not empty, but got \{\}"),
    ],
)
def test_bad_arguments_are_refused_with_rule_name_and_value(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        tuner(**changes)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, r"a space must have at least one parameter, but got \{\}"),
        ({"lr": (1.0, 0.1)}, r"parameter 'lr': low < high must hold, but got Real\(low=1.0, high=0.1"),
    ],
)
def test_bad_spaces_are_refused(space: dict[str, Any], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        LlamaTune(space, hill)


def test_optimizing_without_a_function_says_what_is_missing() -> None:
    with pytest.raises(SettingsError, match=r"optimize\(\) needs model_eval_fn; with ask\(\) and tell\(\)"):
        tuner(None).optimize()


def test_recommend_is_the_trial_that_is_best_on_average() -> None:
    optimizer = tuner(max_evals=8)
    with pytest.raises(NoCompletedTrialError):
        optimizer.recommend()
    optimizer.optimize()
    assert optimizer.recommend() == recommend(optimizer.study, optimizer.settings)
    assert optimizer.recommend() in optimizer.study.completed


def test_a_result_told_by_hand_while_the_trial_runs_stays(caplog: pytest.LogCaptureFixture) -> None:
    def evaluate(params: dict[str, Any]) -> float:
        number = len(tuner.study.trials) - 1
        if number == 1:
            tuner.tell(number, 0.25)
        return 0.75

    tuner = LlamaTune({"x": Real(0, 1)}, evaluate, max_evals=3, progress=False, n_initial=3)
    tuner.optimize()
    assert [trial.value for trial in tuner.study.trials] == [0.75, 0.25, 0.75]
    assert "has a result already" in caplog.text
    assert "0.75" in caplog.text


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_a_search_in_memory_can_be_copied_and_goes_on_alike(copied: Callable[[LlamaTune], LlamaTune]) -> None:
    optimizer = tuner(hill, 3)
    optimizer.tell(optimizer.ask(), 0.5)
    other = copied(optimizer)
    assert other.study == optimizer.study
    assert other.optimize() == optimizer.optimize()
    assert other.study is not optimizer.study


def test_a_stored_search_is_not_copied(tmp_path: Path) -> None:
    optimizer = tuner(hill, storage=f"sqlite:///{tmp_path / 's.db'}", name="s")
    for attempt in (copy.deepcopy, copy.copy, pickle.dumps):
        with pytest.raises(StorageError, match="a search with a storage cannot be copied: open it again"):
            attempt(optimizer)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_closed_or_missing_stream_ends_no_search(stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    for absent in (None, closed):
        monkeypatch.setattr(sys, stream, absent)
        monkeypatch.setattr(logging, "raiseExceptions", False)
        optimizer = tuner(hill, 1, progress=True)
        optimizer.optimize()
        assert states(optimizer) == ["complete"]


@pytest.mark.parametrize("arguments", [{"metric": "a\0"}, {"metric": "\ud800"}, {"storage": "sqlite:///\0.db"}])
def test_texts_that_no_storage_can_hold_are_refused_at_once(arguments: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        tuner(hill, **arguments)


def test_odd_characters_in_names_choices_and_notes_do_no_harm(tmp_path: Path) -> None:
    space = {"a\0": Real(0, 1), "\ud800": ["\udfff", "\0"]}

    def evaluate(params: dict[str, Any]) -> Outcome:
        return Outcome(params["a\0"], notes={"\ud800": "\0"})

    for _ in range(2):
        stored = {"storage": f"sqlite:///{tmp_path / 's.db'}", "name": "s", "progress": False}
        optimizer = LlamaTune(space, evaluate, 2, **stored)
        optimizer.optimize()
        assert states(optimizer) == ["complete"] * 2
        assert optimizer.study.trials[0].notes == {"\\ud800": "\\x00"}
