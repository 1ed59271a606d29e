"""Whatever the user's function does, an outcome comes back; what is no score is refused."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from strategies import make_trial

from llamatune_torch import Cause, LlamaTune, Outcome, OutcomeError, SettingsError, Trial, TrialState
from llamatune_torch.runtime.evaluation import run_guarded

TRIAL = make_trial(0, {"x": 0.5})


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
    outcome = run_guarded(raising(error), TRIAL)
    assert outcome.value is None
    assert outcome.reason == reason
    assert outcome.cause == (Cause.OUT_OF_MEMORY if reason == "out of memory" else Cause.ERROR)
    assert outcome.error.startswith("Traceback (most recent call last):")
    assert "raise error" in outcome.error
    assert outcome.error.splitlines()[-1].startswith(
        type(error).__module__.replace("builtins", "") or type(error).__name__
    )


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (SystemExit(1), "SystemExit"),
        (GeneratorExit(), "GeneratorExit"),
        (UnspeakableError(), "UnspeakableError"),
        (ValueError("x" * 50_000_000), "ValueError"),
    ],
)
def test_whatever_an_evaluation_raises_is_a_failure_of_its_trial(error: BaseException, reason: str) -> None:
    outcome = run_guarded(raising(error), TRIAL)
    assert (outcome.reason, outcome.cause) == (reason, Cause.ERROR)
    assert "raise error" in outcome.error
    assert len(outcome.error) < 21_000


def test_a_number_that_cannot_be_read_is_a_failure_of_its_trial() -> None:
    outcome = run_guarded(lambda trial: torch.zeros((), device="meta"), TRIAL)
    assert (outcome.value, outcome.cause) == (None, Cause.ERROR)


def test_what_an_evaluation_has_forked_off_ends_and_leaves_the_trial_to_its_parent(tmp_path: Path) -> None:
    code = """
import os, sys, warnings
warnings.simplefilter("ignore")  # of forking with threads
from llamatune_torch import LlamaTune
ends = [lambda: sys.exit(1), lambda: 7.0, lambda: 1 / 0]
def evaluate(params):
    end = ends.pop()
    if os.fork() == 0:
        return end()
    os.wait()
    return params["x"]
tuner = LlamaTune({"x": (0.0, 1.0)}, evaluate, 3, storage="sqlite:///s.db", name="s", progress=False)
tuner.optimize()
print([str(trial.state) for trial in tuner.study.trials])
"""
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "['complete', 'complete', 'complete']\n"


def test_a_forked_child_leaves_the_trials_of_its_parent_alone_and_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    tuner = LlamaTune({"x": (0.0, 1.0)})
    trial = tuner.ask()
    with monkeypatch.context() as child:
        child.setattr("os.getpid", lambda: -1)
        assert tuner.tell(trial, 0.5).state is TrialState.RUNNING
        assert tuner.abandon(trial, "unwinding").state is TrialState.RUNNING
        assert tuner.tell(tuner.ask(), 0.5).state is TrialState.COMPLETE
    tuner.ask()
    assert tuner.tell(trial, 0.5).state is TrialState.COMPLETE


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SettingsError("xi must be ...")])
def test_interrupts_and_mistakes_in_the_use_of_the_package_pass_through(error: BaseException) -> None:
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
