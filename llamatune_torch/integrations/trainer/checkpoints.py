"""Checkpoints of trials: which are written, which are complete, and how a trial goes on from one.

A trial that repeats another takes the newest complete checkpoint of that one into its own folder, and goes on from
there. What happens to the other one's files later is no concern of it: a machine that was only suspended may wake up.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from llamatune_torch.errors import CheckpointWarning
from llamatune_torch.files import replacing
from llamatune_torch.integrations.trainer.folders import OURS, checkpoints_in, delete, read_record

#: The file that a Trainer writes last.
STATE = "trainer_state.json"


def with_checkpoints(args: TrainingArguments, folder: Path, resumable: bool, pauses: bool = False) -> TrainingArguments:
    """Copies a Trainer's arguments, with its checkpoints in a trial's folder, and only those that somebody can use.

    Args:
        args: the user's, who may share them between trainers.
        folder: the trial's, because the rotation of checkpoints must not see those of other trials.
        resumable: True if a later trial may go on from the newest checkpoint, should this one's worker die. The
            Trainer itself uses them only for ``load_best_model_at_end``.
        pauses: True if the run is to pause, which takes a checkpoint of its own.
    """
    copied = copy.copy(args)
    copied.output_dir = str(folder)
    if pauses:
        copied.save_only_model = False
    if not args.load_best_model_at_end:
        if resumable or pauses:
            copied.save_total_limit = 1
        if resumable:
            copied.save_only_model = False
        else:
            copied.save_strategy = SaveStrategy.NO
    return copied


def newest_complete(folders: Iterable[Path]) -> Path | None:
    """Finds the complete checkpoint with the highest step in some folders; warns of those that are not complete."""
    found = [checkpoint for folder in folders for checkpoint in checkpoints_in(folder)]
    for step, path in sorted(found, reverse=True):
        flaw = find_flaw(path, step)
        if flaw is None:
            return path
        warnings.warn(f"{path} is skipped, because it is not complete: {flaw}", CheckpointWarning, stacklevel=2)
    return None


def find_flaw(checkpoint: Path, step: int) -> str | None:
    """Says what is missing in a checkpoint, as after a kill while it was written; ``None`` if it is complete."""
    state = read_record(checkpoint / STATE)
    if state is None or state.get("global_step") != step:
        return f"there is no {STATE} of step {step}"
    best = _best_beside(checkpoint, state)
    if best is not None and not best.is_dir():
        return f"the best checkpoint before it, {best.name}, is gone"
    files = [path for folder in {checkpoint, best or checkpoint} for path in folder.rglob("*") if path.is_file()]
    for path in files:
        if not _is_whole(path):
            return f"{path.relative_to(checkpoint.parent)} is cut off"
    # Of DeepSpeed, in a folder of the step.
    if not any("optimizer" in path.name or path.name.startswith("global_step") for path in checkpoint.iterdir()):
        return "the state of the optimizer is missing"
    return None


def adopt(checkpoint: Path, folder: Path) -> Path:
    """Copies a complete checkpoint into a trial's folder, with the best one before it; returns its place there.

    Raises:
        OSError: the disk is full, or the checkpoint is being deleted.
    """
    state = json.loads((checkpoint / STATE).read_text())
    best = _best_beside(checkpoint, state)
    if best is not None:
        state["best_model_checkpoint"] = str(folder / best.name)
        if best != checkpoint:
            _copy(best, folder / best.name)
    return _copy(checkpoint, folder / checkpoint.name, state)


def settle_in(checkpoint: Path) -> None:
    """Writes the present place of the best checkpoint into the state of a complete one, where both have been moved.

    Raises:
        OSError: the state cannot be written.
    """
    state = json.loads((checkpoint / STATE).read_text())
    best = _best_beside(checkpoint, state)
    if best is not None and state["best_model_checkpoint"] != str(best):
        with replacing(checkpoint / STATE) as file:
            json.dump({**state, "best_model_checkpoint": str(best)}, file)


class ResumeError(Exception):
    """A run could not load its checkpoint; nothing has been trained."""


def train(trainer: Trainer, checkpoint: Path | None, record: Callable[[int, Mapping[str, Any]], object]) -> None:
    """Trains, from a checkpoint if there is one.

    Args:
        trainer: a fresh one, with arguments that may be changed.
        checkpoint: a complete one of the same arguments.
        record: called with the step and the metrics of each evaluation before the checkpoint.

    Raises:
        ResumeError: the checkpoint could not be loaded, so that a fresh trainer has to start at the beginning.
    """
    resumption = Resumption(record)
    # With load_best_model_at_end, the Trainer saves at the moment of an evaluation anyway.
    callbacks = [resumption, *([] if trainer.args.load_best_model_at_end else [LateSaves()])]
    for callback in callbacks:
        trainer.add_callback(callback)
    # The patience of an EarlyStoppingCallback, for example.
    trainer.args.restore_callback_states_from_checkpoint = checkpoint is not None
    trainer.args.eval_on_start &= checkpoint is None  # a second one would be counted by that patience
    try:
        if checkpoint is None:
            trainer.train()
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint))
        return
    except Exception as error:
        if checkpoint is None or resumption.begun or trainer.args.world_size > 1:  # other ranks may be training already
            raise
        reason = f"{type(error).__name__}: {error}"
    finally:
        for callback in callbacks:
            trainer.remove_callback(callback)
    raise ResumeError(reason)  # without the first error, whose frames hold the model


class LateSaves(TrainerCallback):
    """Puts off a checkpoint at the last step of an epoch until the epoch has ended, with its evaluation.

    A run that goes on from a checkpoint begins the next epoch at once. Without this, it would miss that evaluation, and
    the random numbers after it would be others.
    """

    def __init__(self) -> None:
        self.due = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.due = control.should_save and float(state.epoch or 0.5).is_integer()
        if self.due:
            control.should_save = False

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.due:
            self.due, control.should_save = False, True


class Resumption(TrainerCallback):
    """Notices that a run has loaded its checkpoint, and hands on what was evaluated before it.

    Args:
        record: called with the step and the metrics of each earlier evaluation.
    """

    def __init__(self, record: Callable[[int, Mapping[str, Any]], object]) -> None:
        self.record = record
        #: True once the checkpoint is loaded, so that what goes wrong is the training's fault.
        self.begun = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.begun = True
        evaluations: dict[int, dict[str, Any]] = {}
        for entry in state.log_history:  # each evaluation set has an entry of its own
            if any(name.endswith("_runtime") and name != "train_runtime" for name in entry):
                evaluations.setdefault(int(entry["step"]), {}).update(entry)
        for step, metrics in evaluations.items():
            self.record(step, {name: value for name, value in metrics.items() if name != "step"})


def _best_beside(checkpoint: Path, state: Mapping[str, Any]) -> Path | None:
    """The best checkpoint that a state refers to; by its name, since the folder of both may have been moved."""
    best = state.get("best_model_checkpoint")
    return None if best is None else checkpoint.parent / Path(best).name


def _is_whole(path: Path) -> bool:
    """False for a file of weights or of states whose end is missing."""
    if path.name.endswith(".index.json"):
        index = read_record(path)
        parts = None if index is None else index.get("weight_map")
        return isinstance(parts, dict) and all((path.parent / part).is_file() for part in parts.values())
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt"):
                return True
        except (SafetensorError, OSError):
            return False
    return path.suffix not in (".pt", ".pth", ".bin") or zipfile.is_zipfile(path)  # as torch.save writes it


def _copy(source: Path, target: Path, state: Mapping[str, Any] | None = None) -> Path:
    """Copies a checkpoint, with another state if given; it is there as a whole or not at all."""
    part = target.parent / OURS / "part"
    delete(part)
    shutil.copytree(source, part, copy_function=_link_or_copy)
    if state is not None:
        (part / STATE).unlink()  # else a link to the source's
        (part / STATE).write_text(json.dumps(state))
    return part.rename(target)


def _link_or_copy(source: str, target: str) -> None:
    # A checkpoint is never changed once it is written, so that both may be the same file.
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
