"""The pause of a training run: a look at its metric and a checkpoint, at the share that it was started for.

The run goes on later as if it had never paused, to the last digit. So the look is one that the training does not feel:
it leaves the random numbers as they were, and no callback hears of it that may count evaluations. Where the Trainer
evaluates at that step anyway, there is no other look.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import has_length

from llamatune_torch.errors import CheckpointWarning
from llamatune_torch.integrations.trainer.callback import Recorder
from llamatune_torch.integrations.trainer.folders import delete

_ROUNDING = 1e-6  # shares are quotients of steps


class Pauser(TrainerCallback):
    """Pauses one training run, unless it is over before.

    Inside its ``with`` block it is a callback of the Trainer, and stands in front of its checkpoints. One that cannot
    be written, as on a full disk, does not cost the run: it pauses all the same, and begins anew if it goes on.

    Args:
        trainer: has arguments that may be changed.
        recorder: records the evaluations.
        until: the share of all steps at which the run pauses; 1 for a run that does not.
    """

    def __init__(self, trainer: Trainer, recorder: Recorder, until: float) -> None:
        self.trainer: Any = trainer
        self.recorder = recorder
        self.until = until
        #: True once the run has paused.
        self.paused = False
        self._due = False

    def __enter__(self) -> Self:
        self._save, self.trainer._save_checkpoint = self.trainer._save_checkpoint, self._save_or_warn
        self.trainer.add_callback(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.trainer.remove_callback(self)
        del vars(self.trainer)["_save_checkpoint"]

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        is_over = control.should_training_stop or state.global_step >= state.max_steps
        # With load_best_model_at_end, the checkpoint of an evaluation would be taken for one of the Trainer's own.
        awaits = args.load_best_model_at_end and control.should_evaluate and not control.should_save
        has_reached = state.global_step >= (self.until - _ROUNDING) * state.max_steps
        self._due = self.until < 1 and has_reached and not is_over and not awaits
        if self._due and (state.epoch or 0) > 1 and not has_length(kwargs["train_dataloader"]):
            self._go_on("its stream of data has begun again, and a Trainer cannot go on in the middle of that")
        if self._due and not float(state.epoch or 0.5).is_integer():  # an epoch may end with an evaluation
            self._prepare(state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.paused:  # in the middle of the epoch, which has not ended for the run
            control.should_log = control.should_evaluate = control.should_save = False
        elif self._due and not control.should_training_stop:
            self._prepare(state, control)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # The evaluation of this step may have ended the run, by its nan or by the end of somebody's patience.
        if self._due and not control.should_training_stop and state.global_step in self.recorder.values:
            self.paused = control.should_training_stop = True
            # The best model is not wanted yet, and no checkpoint is to be deleted for it.
            args.load_best_model_at_end = False
            args.save_total_limit = None

    def _prepare(self, state: TrainerState, control: TrainerControl) -> None:
        if not control.should_evaluate and state.global_step not in self.recorder.values:
            with unfelt(self.trainer):
                self.trainer.evaluate()
            if self.recorder.failure is None and state.global_step not in self.recorder.values:
                self._go_on("an evaluation in the middle of its training does not have the metric")
        if self._due and self.recorder.failure is None:
            control.should_save = control.should_log = True

    def _go_on(self, why: str) -> None:
        self.until, self._due = 1.0, False
        warnings.warn(f"a run goes on to its end without a pause, because {why}", CheckpointWarning, stacklevel=2)

    def _save_or_warn(self, *args: Any, **kwargs: Any) -> None:
        try:
            self._save(*args, **kwargs)
        except Exception as error:  # safetensors has its own error for a full disk
            if not self._due or self.trainer.args.world_size > 1:  # other ranks may be waiting within
                raise
            checkpoint = Path(self.trainer.args.output_dir, f"checkpoint-{self.trainer.state.global_step}")
            delete(checkpoint)
            message = f"{checkpoint} could not be written, so the run begins anew if it goes on: {error}"
            warnings.warn(message, CheckpointWarning, stacklevel=2)


@contextmanager
def unfelt(trainer: Trainer) -> Iterator[None]:
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
