"""Checkpoints of trials: which are written, which are complete, and how a trial goes on from one."""

from __future__ import annotations

import copy
from pathlib import Path

from transformers import TrainingArguments
from transformers.trainer_utils import SaveStrategy


def with_checkpoints(args: TrainingArguments, folder: Path, resumable: bool) -> TrainingArguments:
    """Copies a Trainer's arguments, with its checkpoints in a trial's folder, and only those that somebody can use.

    Args:
        args: the user's, who may share them between trainers.
        folder: the trial's, because the rotation of checkpoints must not see those of other trials.
        resumable: True if a later trial may go on from the newest checkpoint, should this one's worker die. The
            Trainer itself uses them only for ``load_best_model_at_end``.
    """
    copied = copy.copy(args)
    copied.output_dir = str(folder)
    if not args.load_best_model_at_end:
        if resumable:
            copied.save_total_limit = 1
            copied.save_only_model = False
        else:
            copied.save_strategy = SaveStrategy.NO
    return copied
