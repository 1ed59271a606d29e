"""The pause of a training run: a look at its metric and a checkpoint, at the share that it was started for.

The run goes on later as if it had never paused, to the last digit. So the look is one that the training does not feel:
it leaves the random numbers as they were, and no callback hears of it that may count evaluations. Where the Trainer
evaluates at that step anyway, there is no other look.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llamatune_torch.integrations.trainer.callback import Recorder

_ROUNDING = 1e-6  # shares are quotients of steps


class Pauser(TrainerCallback):
    """Pauses one training run, unless it is over before.

    Args:
        trainer: has arguments that may be changed.
        recorder: records the evaluations.
        until: the share of all steps at which the run pauses; 1 for a run that does not.
    """

    def __init__(self, trainer: Trainer, recorder: Recorder, until: float) -> None:
        self.trainer = trainer
        self.recorder = recorder
        self.until = until
        #: True once the run has stopped with a checkpoint from which it can go on.
        self.paused = False
        self._due = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.until >= 1 or state.global_step >= state.max_steps or self.recorder.failure is not None:
            return
        self._due = state.global_step >= (self.until - _ROUNDING) * state.max_steps
        if self._due and not float(state.epoch or 0.5).is_integer():  # an epoch may end with an evaluation
            self._prepare(state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._due and self.recorder.failure is None:
            self._prepare(state, control)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._due and state.global_step in self.recorder.values:
            self.paused = control.should_training_stop = True
            # The best model is not wanted yet, and no checkpoint is to be deleted for it.
            self.trainer.args.load_best_model_at_end = False
            self.trainer.args.save_total_limit = None

    def _prepare(self, state: TrainerState, control: TrainerControl) -> None:
        if not control.should_evaluate and state.global_step not in self.recorder.values:
            with _unfelt(self.trainer):
                self.trainer.evaluate()
        if self.recorder.failure is None:
            control.should_save = True


@contextmanager
def _unfelt(trainer: Trainer) -> Iterator[None]:
    """Keeps the generators of random numbers, and tells no callback of an evaluation; they hear what is logged."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    handler: Any = trainer.callback_handler
    handler.on_evaluate = lambda args, state, control, metrics: control
    try:
        yield
    finally:
        del handler.on_evaluate
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if on_gpus:
            torch.cuda.set_rng_state_all(on_gpus)
