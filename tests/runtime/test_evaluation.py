"""Whatever the user's function does, an outcome comes back; what is no score is refused."""

from __future__ import annotations

import gc
import math
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from strategies import make_trial

from llamatune_torch import Outcome, OutcomeError, SettingsError, Trial
from llamatune_torch.runtime.evaluation import as_number, as_outcome, reason_of, run_guarded

TRIAL = make_trial(0, {"x": 0.5})


# --- Scores ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.5, np.float64(0.5), np.float32(0.5), torch.tensor(0.5), np.array(0.5)])
def test_numbers_of_python_numpy_and_torch_are_scores(value: Any) -> None:
    number = as_number(value)
    assert type(number) is float
    assert number == 0.5


def test_integers_are_scores() -> None:
    assert [as_number(v) for v in (3, np.int64(3), torch.tensor(3))] == [3.0, 3.0, 3.0]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("0.93", r"'0.93' \(str\)"),
        (None, r"None \(NoneType\)"),
        (True, r"True \(bool\)"),
        (np.bool_(True), r"\(bool\)"),
        ([0.5], r"\[0.5\] \(list\)"),
        ({"accuracy": 0.5}, r"\(dict\)"),
        (torch.tensor([0.5]), r"\(Tensor\)"),
        (np.array([0.5, 0.6]), r"\(ndarray\)"),
        (1j, r"1j \(complex\)"),
    ],
)
def test_what_is_no_number_is_refused_with_value_and_type(value: Any, shown: str) -> None:
    with pytest.raises(OutcomeError, match=rf"an evaluation must return a number or an Outcome, but got .*{shown}"):
        as_outcome(value, "maximize")


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_nan_is_a_failure(direction: Any) -> None:
    for value in (math.nan, np.float32("nan"), Outcome(value=math.nan)):
        outcome = as_outcome(value, direction)
        assert (outcome.value, outcome.reason, outcome.error) == (None, "nan", "the value is nan")


@pytest.mark.parametrize(("direction", "bad"), [("maximize", -math.inf), ("minimize", math.inf)])
def test_infinity_on_the_bad_side_is_the_worst_value_and_on_the_good_side_a_failure(direction: Any, bad: float) -> None:
    assert as_outcome(bad, direction).value == bad
    good = as_outcome(-bad, direction)
    assert (good.value, good.reason) == (None, "infinite")
    assert good.error == f"the value is {-bad}, better than any score can be (direction: {direction})"


def test_an_outcome_with_an_error_or_a_reason_has_failed_whatever_its_value() -> None:
    assert as_outcome(Outcome(value=1.0, error="disk full"), "maximize").value is None
    assert as_outcome(Outcome(value=1.0, error="disk full"), "maximize").reason == "error"
    assert as_outcome(Outcome(value=1.0, reason="nan"), "maximize").error == "nan"


def test_an_outcome_without_a_value_has_failed() -> None:
    outcome = as_outcome(Outcome(), "maximize")
    assert (outcome.value, outcome.reason) == (None, "no value")


def test_an_outcome_keeps_what_else_was_measured() -> None:
    outcome = as_outcome(Outcome(value=np.float32(0.5), outcomes={"memory_gb": 7.5}, cost=2.0), "maximize")
    assert (outcome.value, outcome.outcomes, outcome.cost) == (0.5, {"memory_gb": 7.5}, 2.0)


def test_the_value_of_an_outcome_must_be_a_number_too() -> None:
    with pytest.raises(OutcomeError, match=r"but got '0.5' \(str\)"):
        as_outcome(Outcome(value="0.5"), "maximize")


# --- Exceptions --------------------------------------------------------------------------------------------------


def raising(error: BaseException) -> Any:
    def evaluate(trial: Trial) -> float:
        raise error

    return evaluate


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "out of memory"),
        (MemoryError(), "out of memory"),
        (RuntimeError("CUDA error: out of memory"), "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."), "out of memory"),
        (RuntimeError("shapes do not match"), "RuntimeError"),
        (ValueError("the disk is out of memory cards"), "ValueError"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError"),
    ],
)
def test_an_exception_becomes_a_failure_with_its_kind_and_its_traceback(error: Exception, reason: str) -> None:
    assert reason_of(error) == reason
    outcome = run_guarded(raising(error), TRIAL)
    assert outcome.value is None
    assert outcome.reason == reason
    assert outcome.error.startswith("Traceback (most recent call last):")
    assert "raise error" in outcome.error
    assert outcome.error.splitlines()[-1].startswith(
        type(error).__module__.replace("builtins", "") or type(error).__name__
    )


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), SettingsError("xi must be ...")])
def test_interrupts_exits_and_mistakes_in_the_use_of_the_package_pass_through(error: BaseException) -> None:
    with pytest.raises(type(error)):
        run_guarded(raising(error), TRIAL)


def test_an_exception_does_not_keep_the_model_of_its_frames_in_memory() -> None:
    class Model:
        pass

    alive: list[weakref.ref[Model]] = []

    def evaluate(trial: Trial) -> float:
        model = Model()
        alive.append(weakref.ref(model))
        raise RuntimeError("CUDA error: out of memory")

    outcome = run_guarded(evaluate, TRIAL)
    gc.collect()
    assert outcome.reason == "out of memory"
    assert alive[0]() is None


def test_the_cost_is_measured_unless_the_outcome_brings_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.5, 20.0, 21.0, 30.0, 34.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    assert run_guarded(lambda trial: 0.5, TRIAL) == Outcome(value=0.5, cost=2.5)
    assert run_guarded(lambda trial: Outcome(value=0.5, cost=99.0), TRIAL).cost == 99.0
    assert run_guarded(raising(ValueError()), TRIAL).cost == 4.0


def test_a_score_that_is_none_is_refused_at_once() -> None:
    with pytest.raises(OutcomeError, match=r"but got '0.93' \(str\)"):
        run_guarded(lambda trial: "0.93", TRIAL)
