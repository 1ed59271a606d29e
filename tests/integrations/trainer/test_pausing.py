"""A run that pauses and goes on is the same as one that does not, to the last digit."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from test_checkpoints import Clock, Losses, Steps, cut_off, same_result
from test_trl import texts, trl_trainer
from tiny import (
    CHECKPOINTS,
    SPACE,
    At,
    Parity,
    evaluated,
    folders_of,
    language_model,
    left_in,
    raises,
    scripted,
    text_trainer,
    tiny_trainer,
    tuned,
)
from torch.utils.data import IterableDataset
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

from llamatune_torch import (
    Cause,
    CheckpointWarning,
    Integer,
    Listener,
    LlamaTune,
    Study,
    Trial,
    TrialState,
    tune,
)
from llamatune_torch.decisions import Decision, Discard, Resume
from llamatune_torch.engine.strategies.strategy import next_rung, start

TWELVE_STEPS = {"train_dataset": Parity(64, seed=0), "num_train_epochs": 3, "logging_steps": 1}


@dataclass(frozen=True)
class Stages:
    """Each run pauses at each rung, and goes on at once."""

    rungs: tuple[float, ...]
    least: float = 0.01

    def decide(self, study: Study, settings: Any, left: float) -> Decision:
        for trial in study.paused:
            return Resume(trial.number, next_rung(self.rungs, trial.reached), "the next stage")
        return start(study, settings, self.rungs[0], left)


class Run:
    """One trial of one search, and all that its training has shown.

    Args:
        folder: an empty one.
        steps: at which it pauses.
        trainer: builds a Trainer of the parameters, a folder and callbacks.
        **search: further arguments of ``tune``.
    """

    def __init__(self, folder: Path, steps: list[int], trainer: Callable[..., Trainer], **search: Any) -> None:
        self.losses, self.steps = Losses(), list[int]()
        self.stages = Stages(tuple(step / 12 for step in (*steps, 12)))
        self.folder = folder

        def factory(params: Any) -> Trainer:
            return trainer(params, folder, [self.losses, Steps(self.steps)])

        arguments = {"strategy": self.stages, "keep": "best", **search}
        self.study = tuned(folder, factory, **arguments)
        self.trial = self.study.trials[0]

    @property
    def weights(self) -> bytes:
        (file,) = (self.folder / "out" / "best").glob("*.safetensors")
        return file.read_bytes()


def both(folder: Path, steps: list[int], trainer: Callable[..., Trainer], **search: Any) -> tuple[Run, Run]:
    """A run that is not interrupted, and the same that pauses at some steps."""
    return Run(folder / "whole", [], trainer, **search), Run(folder / "paused", steps, trainer, **search)


def assert_the_same(paused: Run, whole: Run, steps: list[int]) -> None:
    """Compares all that two runs have shown; the paused one has looked at ``steps``, too."""
    assert (whole.trial.pauses, paused.trial.pauses) == (0, len(steps))
    assert paused.steps == whole.steps  # none is trained twice
    assert paused.losses.at == whole.losses.at
    assert [point for point in paused.trial.curve if point in set(whole.trial.curve)] == list(whole.trial.curve)
    assert {*paused.trial.curve.steps} - {*whole.trial.curve.steps} <= {*steps}
    assert {*steps} <= {*paused.trial.curve.steps}
    assert same_result(paused.trial, whole.trial) or {*steps} - {*whole.trial.curve.steps}
    assert paused.trial.value == whole.trial.value
    assert paused.trial.notes == whole.trial.notes
    assert paused.weights == whole.weights
    assert left_in(paused.folder / "out") == ["best"]


def plain(**changes: Any) -> Callable[..., Trainer]:
    return lambda params, folder, callbacks: tiny_trainer(
        params, folder, **{**TWELVE_STEPS, "callbacks": callbacks, **changes}
    )


def best_first(params: Any, folder: Path, callbacks: list[TrainerCallback]) -> Trainer:
    """The first epoch is the best, and a patience of one more ends the run before its last."""
    clock = Clock()
    changes: dict[str, Any] = {
        **TWELVE_STEPS,
        **CHECKPOINTS,
        "metric_for_best_model": "score",
        "compute_metrics": lambda prediction: {"score": 1 / clock.step},
        "callbacks": [clock, *callbacks, EarlyStoppingCallback(early_stopping_patience=1)],
    }
    return tiny_trainer(params, folder, **changes)


class Stream(IterableDataset[dict[str, Any]]):
    """Rows without a number; after ``n`` of them it begins again."""

    def __init__(self, n: int) -> None:
        self.rows = Parity(n, seed=0)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self.rows[i] for i in range(len(self.rows)))


STEPS = {"eval_strategy": "steps", "save_strategy": "steps", "load_best_model_at_end": True}


@pytest.mark.parametrize(
    ("trainer", "steps"),
    [
        (plain(), [2, 5]),
        (plain(), [4, 8]),
        (plain(), [1, 4, 11]),
        (plain(gradient_accumulation_steps=2, per_device_train_batch_size=8, lr_scheduler_type="cosine"), [2, 4, 7]),
        (plain(eval_strategy="no"), [2, 4]),
        (plain(eval_strategy="steps", eval_steps=3, eval_on_start=True), [3, 5]),
        (plain(**CHECKPOINTS), [1, 5]),
        (plain(**CHECKPOINTS), [4, 9]),
        (plain(**STEPS, eval_steps=1, save_steps=1), [3, 4]),
        (plain(**STEPS, eval_steps=3, save_steps=3, save_total_limit=1), [2, 3, 7]),
        (best_first, [1, 4]),
        (best_first, [4, 6]),
        (plain(train_dataset=Stream(512), num_train_epochs=1, max_steps=12), [2, 5]),
        (plain(max_steps=12, warmup_steps=4, max_grad_norm=0.1, optim="sgd"), [3]),
    ],
    ids=[
        "in the middle of epochs",
        "at the end of epochs",
        "before the first evaluation",
        "accumulation",
        "no evaluations",
        "evaluations at steps",
        "best checkpoint, in the middle",
        "best checkpoint, at an end",
        "best checkpoint at each step",
        "best checkpoint at some steps",
        "early stopping, in the middle",
        "early stopping, at an end",
        "streamed data",
        "warm-up",
    ],
)
def test_a_run_that_pauses_is_the_same_as_one_that_does_not(
    trainer: Callable[..., Trainer], steps: list[int], tmp_path: Path
) -> None:
    """With dropout, its losses, its curve and its weights."""
    whole, paused = both(tmp_path, steps, trainer, metric="score" if trainer is best_first else "loss")
    assert_the_same(paused, whole, steps)
    if trainer is best_first:
        assert whole.steps == list(range(1, 9))
