"""Outcomes and trials: what they share, what a failure is called, what is no score."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from strategies import make_trial

from llamatune_torch import Cause, Curve, Outcome, OutcomeError, Trial, TrialState
from llamatune_torch.trial import KEEPERS_OWN, as_number, as_outcome, cause_of

# --- Scores -----------------------------------------------------------------------------------------------------------


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


def test_an_integer_too_large_for_a_float_is_an_infinity() -> None:
    assert as_number(10**400) == math.inf
    assert as_number(-(10**400)) == -math.inf


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"value": "7"}, r"an evaluation must return a number or an Outcome, but got '7' \(str\)"),
        ({"value": torch.zeros((), device="meta")}, r"or an Outcome, but .* \(Tensor\) cannot be read"),
        ({"value": Hostile()}, r"but got a value without a repr \(Hostile\)"),
        ({"value": "x" * 50_000_000}, r"but got 'x{299}\.\.\. \(str\)$"),
        ({"cost": "7"}, r"cost must be a number, but got '7' \(str\)"),
        ({"cost": [7]}, r"cost must be a number, but got \[7\] \(list\)"),
        ({"cost": True}, r"cost must be a number, but got True \(bool\)"),
        ({"cost": -1.0}, r"cost must be a finite number of seconds >= 0, but got -1.0"),
        ({"cost": math.nan}, r"cost must be a finite number of seconds >= 0, but got nan"),
        ({"cost": 10**400}, r"cost must be a finite number of seconds >= 0, but got inf"),
        ({"outcomes": None}, r"outcomes must be a dict, but got None \(NoneType\)"),
        ({"outcomes": {"a": None}}, r"outcome 'a' must be a number, but got None \(NoneType\)"),
        ({"outcomes": {"a": np.zeros(2)}}, r"outcome 'a' must be a number, but got array\(\[0., 0.\]\) \(ndarray\)"),
        ({"outcomes": {3: 0.5}}, r"a name in outcomes must be a text, but got 3 \(int\)"),
        ({"notes": "note"}, r"notes must be a dict, but got 'note' \(str\)"),
        ({"notes": {"a": 3}}, r"note 'a' must be a text, but got 3 \(int\)"),
        ({"error": ValueError("x")}, r"error must be a text, but got ValueError\('x'\) \(ValueError\)"),
        ({"reason": 3}, r"reason must be a text, but got 3 \(int\)"),
        ({"curve": [(1, 0.5)]}, r"curve must be a Curve or None, but got \[\(1, 0.5\)\] \(list\)"),
    ],
)
def test_each_field_of_an_outcome_is_checked(fields: Any, message: str) -> None:
    with pytest.raises(OutcomeError, match=message):
        Outcome(**fields)


def test_what_numpy_torch_and_enums_hold_is_kept_as_plain_numbers_and_texts() -> None:
    outcome = Outcome(
        value=np.float32(0.5),
        outcomes={np.str_("a"): np.float64(0.25), "b": torch.tensor(2)},
        cost=np.int64(3),
        curve=Curve((np.int64(1),), (torch.tensor(0.5),), (np.float32(0.5),)),
        reason=TrialState.LOST,
        notes={"c": np.str_("d")},
    )
    assert json.loads(json.dumps(dict(outcome.outcomes))) == {"a": 0.25, "b": 2.0}
    told = [outcome.value, *outcome.outcomes.values(), outcome.cost, *outcome.curve.steps, *outcome.curve.values]
    assert {type(number) for number in told} == {float}
    texts = [*outcome.outcomes, outcome.reason, *outcome.notes.values()]
    assert {type(text) for text in texts} == {str}


def test_texts_that_nothing_can_write_are_escaped_and_long_ones_lose_their_middle() -> None:
    assert Outcome(error="a\0b\ud800c").error == "a\\x00b\\ud800c"
    error = Outcome(error="begin" + "x" * 1_000_000 + "end").error
    assert error.startswith("begin")
    assert error.endswith("end")
    assert "\n... 980008 characters are left out ...\n" in error
    assert len(error) < 21_000


# --- Causes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "cause"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), Cause.OUT_OF_MEMORY),
        (MemoryError(), Cause.OUT_OF_MEMORY),
        (np.exceptions.RankWarning(), Cause.ERROR),
        (RuntimeError("CUDA error: out of memory"), Cause.OUT_OF_MEMORY),
        (RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB"), Cause.OUT_OF_MEMORY),
        (RuntimeError("hipErrorOutOfMemory"), Cause.OUT_OF_MEMORY),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED in `cublasCreate`"),
            Cause.OUT_OF_MEMORY,
        ),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."), Cause.OUT_OF_MEMORY),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), Cause.OUT_OF_MEMORY),
        (OSError(errno.ENOSPC, "No space left on device"), Cause.ERROR),
        (ValueError("the disk is out of memory cards"), Cause.ERROR),
        (FloatingPointError("overflow encountered"), Cause.DIVERGED),
        (TimeoutError("the hub did not answer"), Cause.ERROR),  # of the user's own code, not of the trial
        ("out of memory", Cause.OUT_OF_MEMORY),
        ("CUDA out of memory", Cause.OUT_OF_MEMORY),
        ("nan", Cause.DIVERGED),
        ("infinite", Cause.DIVERGED),
        ("timeout", Cause.TIMEOUT),
        ("killed", Cause.ERROR),  # a text alone makes nothing run again
        ("worker silent", Cause.ERROR),
        ("no luck", Cause.ERROR),
    ],
)
def test_one_function_finds_the_cause_of_exceptions_and_reasons(failure: Any, cause: Cause) -> None:
    assert cause_of(failure) is cause
    if isinstance(failure, str):
        assert Outcome.failure(failure).cause is cause


def test_an_allocation_that_really_fails_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55, dtype=torch.uint8)
    assert cause_of(caught.value) is Cause.OUT_OF_MEMORY
    with pytest.raises(MemoryError) as numpys:
        np.empty(2**55, dtype=np.uint8)
    assert cause_of(numpys.value) is Cause.OUT_OF_MEMORY


def test_a_cause_that_is_given_counts_before_the_reason() -> None:
    assert Outcome.failure("killed by hand", cause=Cause.KILLED).cause is Cause.KILLED
    assert Outcome.failure("nan", cause="timeout").cause is Cause.TIMEOUT
    told = as_outcome(Outcome(cause=Cause.DIVERGED), "maximize")
    assert (told.reason, told.error, told.cause) == ("diverged", "diverged", Cause.DIVERGED)


@pytest.mark.parametrize("cause", [*sorted(KEEPERS_OWN), "gone"])
def test_what_only_the_keeper_can_say_is_refused(cause: Any) -> None:
    with pytest.raises(OutcomeError, match=rf"must be one of \['out of memory', .*'error'\], but got '{cause}'"):
        Outcome(cause=cause)
    with pytest.raises(OutcomeError, match="the cause of an outcome must be"):
        Outcome.failure("reason", cause=cause)


# --- Trials and outcomes ----------------------------------------------------------------------------------------------


def test_each_field_of_an_outcome_is_a_field_of_a_trial() -> None:
    assert {f.name for f in dataclasses.fields(Outcome)} - {"paused"} <= {f.name for f in dataclasses.fields(Trial)}


def filled(**changes: Any) -> Outcome:
    """An outcome whose fields all differ from their defaults."""
    told = {
        "value": 0.5,
        "outcomes": {"memory_gb": 7.5},
        "cost": 2.0,
        "curve": Curve((1.0,), (0.25,), (0.5,)),
        "error": "text",
        "reason": "nan",
        "cause": Cause.DIVERGED,
        "notes": {"a": "b"},
        "std": 0.125,
    }
    return Outcome(**{**told, **changes})


def test_a_trial_takes_all_that_an_outcome_tells_and_gives_it_back() -> None:
    outcome = filled()
    default = Outcome()
    assert all(
        getattr(outcome, f.name) != getattr(default, f.name) for f in dataclasses.fields(Outcome) if f.name != "paused"
    )
    trial = make_trial(3, {"x": 0.5}, state=TrialState.RUNNING).finished_with(outcome, 10.0)
    assert trial.outcome == outcome
    assert (trial.number, trial.params, trial.state, trial.finished) == (3, {"x": 0.5}, TrialState.COMPLETE, 10.0)
    assert trial.finished_with(filled(value=None), 10.0).state is TrialState.FAILED


def test_what_an_outcome_leaves_open_is_what_the_trial_knows() -> None:
    running = make_trial(0, {"x": 0.5}, state=TrialState.RUNNING, started=4.0, curve=Curve((1.0,), (0.25,), (None,)))
    trial = running.finished_with(Outcome(0.5), 10.0)
    assert (trial.cost, trial.curve) == (6.0, running.curve)
    assert running.finished_with(Outcome(0.5), 3.0).cost == 0.0  # clocks may be set back


@pytest.mark.parametrize("cause", sorted(KEEPERS_OWN))
def test_a_trial_that_was_given_up_has_an_outcome_without_the_keepers_cause(cause: Cause) -> None:
    running = make_trial(0, {"x": 0.5}, state=TrialState.RUNNING)
    lost = running.given_up(cause, "taken away", 10.0)
    assert (lost.state, lost.cause, lost.reason, lost.error) == (TrialState.LOST, cause, "taken away", "taken away")
    assert lost.outcome.cause is None
    assert lost.outcome.reason == "taken away"


def test_a_known_standard_deviation_is_checked_and_kept() -> None:
    outcome = Outcome(0.5, std=np.float32(0.25))
    assert outcome.std == 0.25
    assert type(outcome.std) is float
    trial = make_trial(0, {"x": 1}, state=TrialState.RUNNING).finished_with(outcome, 1.0)
    assert (trial.std, trial.outcome.std) == (0.25, 0.25)
    assert Outcome(0.5).std is None
    for odd in (-0.1, math.nan, math.inf):
        with pytest.raises(OutcomeError, match="std must be a finite number >= 0, but got"):
            Outcome(0.5, std=odd)
    with pytest.raises(OutcomeError, match="std must be a number"):
        Outcome(0.5, std="much")  # type: ignore[arg-type]
