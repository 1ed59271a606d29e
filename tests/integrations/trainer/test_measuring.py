"""What a fine-tune takes, by the Trainer's own figures, by hand, and over stages."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import tiny_trainer, tuned
from transformers import TrainerCallback

from llamatune_torch import ConstraintError, ObjectiveError, RuleError, TrialState
from llamatune_torch.integrations.trainer.measuring import Meter, sizes_of

NAMES = {
    "memory_gb", "seconds", "seconds_per_step", "startup_seconds", "evaluation_seconds", "checkpoint_seconds",
    "samples_per_second", "tokens_per_second", "num_trainable", "model_bytes",
}  # fmt: skip


class Sleeps(TrainerCallback):
    """Takes its time in each step and in each evaluation."""

    def __init__(self, step: float = 0.0, evaluation: float = 0.0) -> None:
        self.step, self.evaluation = step, evaluation

    def on_substep_end(self, *args: Any, **kwargs: Any) -> None:
        time.sleep(self.step)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        time.sleep(self.step)

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        time.sleep(self.evaluation)


def test_every_trial_says_what_it_takes(tmp_path: Path) -> None:
    study = tuned(tmp_path, max_evals=2, strategy="full")
    for trial in study.completed:
        assert NAMES <= set(trial.outcomes)
        seen = trial.outcomes
        assert 0 < seen["seconds"] < trial.cost
        assert seen["seconds"] + seen["evaluation_seconds"] < trial.cost
        assert seen["tokens_per_second"] > seen["samples_per_second"] > 0
        assert seen["checkpoint_seconds"] == 0
        assert 0 <= seen["memory_gb"] < 100


def test_the_counts_are_those_of_the_trainer(tmp_path: Path) -> None:
    """With accumulation and a last batch that is smaller: tokens and samples of all steps, in the time of training."""
    built = []

    def factory(params: Any) -> Any:
        built.append(tiny_trainer(params, tmp_path, gradient_accumulation_steps=2, include_num_input_tokens_seen="all"))
        return built[-1]

    (trial,) = tuned(tmp_path, factory, max_evals=1).trials
    state, seen = built[0].state, trial.outcomes
    samples = len(built[0].train_dataset) * state.num_train_epochs
    assert seen["samples_per_second"] * seen["seconds"] == pytest.approx(samples)
    assert seen["tokens_per_second"] * seen["seconds"] == pytest.approx(state.num_input_tokens_seen)
    assert seen["seconds_per_step"] * state.global_step == pytest.approx(seen["seconds"])


def test_training_and_evaluation_are_told_apart(tmp_path: Path) -> None:
    def slow(**pauses: float) -> dict[str, float]:
        def factory(params: Any) -> Any:
            trainer = tiny_trainer(params, tmp_path)
            trainer.add_callback(Sleeps(**pauses))
            return trainer

        return dict(tuned(tmp_path, factory, max_evals=1).trials[0].outcomes)

    steps, evaluations = slow(step=0.2), slow(evaluation=0.2)
    assert steps["seconds"] > 4 * 0.2
    assert evaluations["evaluation_seconds"] > 2 * 0.2
    assert steps["evaluation_seconds"] < evaluations["evaluation_seconds"]
    assert evaluations["seconds"] < steps["seconds"]


def test_a_trial_that_fails_says_what_it_took_as_far_as_it_got(tmp_path: Path) -> None:
    class Fails(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                raise MemoryError

    def factory(params: Any) -> Any:
        trainer = tiny_trainer(params, tmp_path)
        trainer.add_callback(Fails())
        return trainer

    (trial,) = tuned(tmp_path, factory, max_evals=1).trials
    assert trial.state is TrialState.FAILED
    assert trial.outcomes["seconds"] > 0
    assert {"memory_gb", "num_trainable", "model_bytes"} <= set(trial.outcomes)
    (broken,) = tuned(tmp_path, lambda params: 1 / 0, max_evals=1).trials
    assert set(broken.outcomes) == {"memory_gb", "startup_seconds"}


def test_stages_add_up(tmp_path: Path) -> None:
    """A run that pauses and goes on has the time of all its stages, and the memory of the highest."""
    seen: list[dict[str, float]] = []

    def note(search: Any, trial: Any) -> None:
        seen.append(dict(trial.outcomes))

    from llamatune_torch.runtime.events import Listener

    class Notes(Listener):
        def on_pause(self, search: Any, trial: Any) -> None:
            note(search, trial)

    study = tuned(
        tmp_path, max_evals=2, strategy="successive_halving", rungs=[0.5, 1.0], callbacks=[Notes()],
        trainer={"max_steps": 8},
    )  # fmt: skip
    (best,) = study.completed
    first = next(outcomes for outcomes in seen if outcomes["startup_seconds"] < best.outcomes["startup_seconds"])
    for name in ("seconds", "startup_seconds", "evaluation_seconds", "checkpoint_seconds"):
        assert best.outcomes[name] > 0
    assert best.outcomes["memory_gb"] >= min(outcomes["memory_gb"] for outcomes in seen)
    assert first["checkpoint_seconds"] > 0


def test_sums_highest_and_rates_of_stages_by_hand() -> None:
    before = {"seconds": 10.0, "memory_gb": 3.0, "samples_per_second": 2.0, "startup_seconds": 1.0}
    meter = Meter(before)
    assert meter.outcomes()["seconds"] == 10.0  # failed before its first step
    assert meter.outcomes()["samples_per_second"] == pytest.approx(2.0)
    assert meter.outcomes()["startup_seconds"] > 1.0
    assert meter.outcomes()["memory_gb"] == 3.0


def test_the_rise_of_the_resident_memory_is_seen(tmp_path: Path) -> None:
    meter = Meter({})
    with meter.watching():
        block = torch.ones(60_000_000, dtype=torch.uint8)
        time.sleep(0.2)
        del block
    if not torch.cuda.is_available():
        assert meter.outcomes()["memory_gb"] > 0.04


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a CPU")
def test_a_process_of_its_own_counts_in_whole(tmp_path: Path) -> None:
    here, isolated = (tuned(tmp_path / str(alone), max_evals=1, isolate=alone).trials[0] for alone in (False, True))
    assert isolated.outcomes["memory_gb"] > 0.2 > here.outcomes["memory_gb"]


def test_a_search_under_limits_on_what_a_fine_tune_takes(tmp_path: Path) -> None:
    limits = {"model_bytes": "<= 1e9", "seconds": "<= 3600", "eval_accuracy": ">= 0"}
    study = tuned(tmp_path, max_evals=2, strategy="full", constraints=limits, keep="best")
    assert len(study.feasible) == 2
    none = tuned(tmp_path, max_evals=2, strategy="full", constraints={"model_bytes": "<= 1"}, output_dir=tmp_path / "b")
    assert (len(none.completed), none.feasible) == (2, [])
    with pytest.raises(ConstraintError, match=r"latency <= 1: the evaluation does not report 'latency'"):
        tuned(tmp_path, max_evals=2, constraints={"latency": "<= 1"})
    with pytest.raises(RuleError, match=r"raised KeyError\('no_such'\) for {"):
        tuned(tmp_path, max_evals=2, rule=lambda params: params["no_such"] > 0)


def test_a_fine_tune_of_several_objectives(tmp_path: Path) -> None:
    objectives = {"eval_accuracy": "maximize", "seconds": "minimize"}
    study = tuned(tmp_path, max_evals=3, objectives=objectives)
    assert [each.name for each in study.objectives] == ["eval_accuracy", "seconds"]
    assert study.pareto()
    assert not any(trial.pauses for trial in study.trials), "a pause is judged by one metric"
    with pytest.raises(ObjectiveError, match="first objective is the metric"):
        tuned(tmp_path, max_evals=3, objectives=objectives, metric="eval_loss")


def test_sizes_by_hand() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).half()
    model[0].weight.requires_grad_(False)
    assert sizes_of(model) == {"num_trainable": 2 + 4, "model_bytes": 2 * (6 + 2 + 4 + 4) + 8}


def test_the_trainers_methods_are_its_own_again() -> None:
    def method() -> None:
        pass

    trainer: Any = SimpleNamespace(
        args=SimpleNamespace(world_size=1), model=torch.nn.Linear(1, 1), evaluation_loop=method,
        _save_checkpoint=method, training_step=method, add_callback=lambda c: None, remove_callback=lambda c: None,
    )  # fmt: skip
    with Meter({}).of(trainer):
        assert trainer.training_step is not method
    assert (trainer.evaluation_loop, trainer._save_checkpoint, trainer.training_step) == (method,) * 3
