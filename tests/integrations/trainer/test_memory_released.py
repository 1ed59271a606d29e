"""A long search holds no more memory than a short one: every trial's model and trainer are gone when it ends."""

from __future__ import annotations

import gc
import os
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CHECKPOINTS, At, raises, tiny_model, tiny_trainer, tuned
from transformers import Trainer

from llamatune_torch import LlamaTune, MetricError, Trial, TrialState

NUM_TRIALS = 30
# 200 thousand weights: with gradients and Adam's two averages 3.2 MB a trial, so that a leak would show.
WIDTH = 128


class Watched:
    """A factory that can tell which of its trainers and models are still alive."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.folder = folder
        self.changes = changes
        self.refs: list[weakref.ref[Any]] = []

    def __call__(self, params: Any) -> Trainer:
        changes = {"model": tiny_model(n_embd=WIDTH), "max_steps": 2, **self.changes}
        trainer = tiny_trainer(params, self.folder, **changes)
        # As many people's callbacks do: a cycle, so that counting references alone does not free the trainer.
        trainer.callback_handler.callbacks[0].trainer = trainer
        self.refs += [weakref.ref(trainer), weakref.ref(trainer.model), weakref.ref(trainer.accelerator)]
        return trainer

    def num_alive(self) -> int:
        return sum(ref() is not None for ref in self.refs)


def resident_mb() -> float:
    """The process's resident memory in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def num_tensors() -> int:
    return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc to read the process's memory")
def test_thirty_trials_hold_no_more_memory_than_three(tmp_path: Path) -> None:
    """Every fifth trial dies in the middle of training, and every one writes checkpoints and a kept model."""
    factory = Watched(tmp_path)
    alive: list[int] = []
    tensors: list[int] = []
    resident: list[float] = []

    def failing_now_and_then(params: Any) -> Trainer:
        fails = len(alive) % 5 == 4
        dies = At("on_step_end", 1, raises(RuntimeError, "CUDA out of memory"))
        factory.changes = {"callbacks": [dies]} if fails else CHECKPOINTS
        return factory(params)

    def measure(optimizer: LlamaTune, trial: Trial) -> None:
        # No collection of our own before this: tune() has to have done it.
        alive.append(factory.num_alive())
        tensors.append(num_tensors())
        resident.append(resident_mb())

    study = tuned(
        tmp_path, failing_now_and_then, max_evals=NUM_TRIALS, callbacks=[measure], keep="best", strategy="full"
    )
    assert len(study.failed) == NUM_TRIALS // 5
    assert alive == [0] * NUM_TRIALS
    assert tensors[-1] <= tensors[2]
    # Measured: -3 to 4 MB, as the allocator hands memory back in its own time. 27 leaked trials would make 86 MB.
    assert resident[-1] - resident[2] < 16


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("event", ["on_step_end", "on_evaluate", "on_save"])
def test_a_trial_that_ends_badly_leaves_nothing_behind(error: type[BaseException], event: str, tmp_path: Path) -> None:
    factory = Watched(tmp_path, **CHECKPOINTS, callbacks=[At(event, 2, raises(error))])
    study = tuned(tmp_path, factory)
    assert study.trials[0].state is (TrialState.LOST if error is KeyboardInterrupt else TrialState.FAILED)
    assert len(factory.refs) == 3
    assert factory.num_alive() == 0


def test_a_mistake_that_ends_the_search_leaves_nothing_behind(tmp_path: Path) -> None:
    factory = Watched(tmp_path)
    with pytest.raises(MetricError) as caught:
        tuned(tmp_path, factory, metric="f1")
    assert factory.num_alive() > 0  # the traceback shows the frames that hold them
    del caught
    gc.collect()
    assert factory.num_alive() == 0
