"""``auto_batch``: the batch that a step learns from stays as it is, and is passed through the model in parts that fit.

The parts are gradients that accumulate. Their losses have to be divided by the number of parts, unless the model has
divided by the number of all items in the batch. The Trainer takes the word of the model's signature for that. It is
wrong for models that take ``**kwargs`` and ignore them, as GPT-2's classifier does. So it is tried out.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Trainer

from llamatune_torch.integrations.trainer.pausing import unfelt

#: The note of a trial whose batch was divided.
DIVIDED = "batch"


def divide(trainer: Trainer, most: int) -> int:
    """Has a fresh Trainer pass at most ``most`` sequences at a time; returns the number that it now passes.

    The number of sequences in a step stays the same, so the parts are as large as its divisors allow.
    """
    args: Any = trainer.args
    batch = int(args.per_device_train_batch_size)
    parts = next(parts for parts in range(1, batch + 1) if batch % parts == 0 and batch // parts <= max(1, most))
    if parts > 1:
        args.per_device_train_batch_size = batch // parts
        args.gradient_accumulation_steps *= parts
        trainer._train_batch_size = args.train_batch_size
        said = getattr(trainer, "loss_is_scaled_for_ga", None)  # by the user; earlier Trainers do not ask
        if said is None and trainer.compute_loss_func is None and not divides_by_items(trainer):
            trainer.model_accepts_loss_kwargs = False
    return batch // parts


def divides_by_items(trainer: Trainer) -> bool:
    """Tries out if a model divides its loss by the number of items that it is told."""
    if not trainer.model_accepts_loss_kwargs:
        return False
    model: Any = trainer.model
    training = model.training
    model.eval()
    try:
        with unfelt(trainer), torch.no_grad():
            inputs: Any = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
            numbers = torch.tensor([1024, 2048], device=trainer.args.device)
            losses: Any = [trainer.compute_loss(model, dict(inputs), num_items_in_batch=n) for n in numbers]
    finally:
        model.train(training)
    return bool(losses[0] != losses[1])
