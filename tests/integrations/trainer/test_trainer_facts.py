"""What Hugging Face's Trainer does, where users of tune() and its examples have to know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers
from tiny import tiny_model, tiny_trainer


def logged(folder: Path, batch_size: int, accumulation: int, scaled: bool | None) -> list[dict[str, Any]]:
    """The losses and gradient norms of three steps from the same weights over the same data, without dropout."""
    transformers.set_seed(0)
    trainer = tiny_trainer(
        {"learning_rate": 1e-2},
        folder,
        model=tiny_model(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_steps=3,
        logging_steps=1,
        eval_strategy="no",
    )
    trainer.loss_is_scaled_for_ga = scaled
    trainer.train()
    return [entry for entry in trainer.state.log_history if "grad_norm" in entry]


@pytest.mark.parametrize(("batch_size", "accumulation"), [(4, 2), (2, 4)])
def test_gradient_accumulation_multiplies_the_loss_of_a_classifier(
    batch_size: int, accumulation: int, tmp_path: Path
) -> None:
    """The trap: n accumulated batches log n times the loss, and train on n times the gradient, of one large batch.

    ``GPT2ForSequenceClassification.forward`` takes ``**kwargs``, so the Trainer believes that the loss it returns
    is scaled by ``num_items_in_batch`` and does not divide it; it is a mean. Whoever tunes batch sizes this way
    tunes the learning rate by stealth. ``loss_is_scaled_for_ga = False`` tells the Trainer the truth.
    """
    whole = logged(tmp_path, 8, 1, None)
    trapped = logged(tmp_path, batch_size, accumulation, None)
    mended = logged(tmp_path, batch_size, accumulation, False)
    for key in ("loss", "grad_norm"):
        # Clipped gradients and Adam hide the factor from the weights here, so it stays the same at every step.
        assert [entry[key] for entry in trapped] == pytest.approx([accumulation * e[key] for e in whole], rel=1e-3)
        assert [entry[key] for entry in mended] == pytest.approx([e[key] for e in whole], rel=1e-4)


def test_the_trainers_constructor_reseeds_torch(tmp_path: Path) -> None:
    """So dropout and shuffling follow ``TrainingArguments.seed``, new layers what was seeded before: the trial."""
    states = []
    for seed in (1, 2):
        transformers.set_seed(seed)
        tiny_trainer({"learning_rate": 1e-2}, tmp_path)
        states.append(transformers.set_seed.__globals__["torch"].random.get_rng_state())
    assert bool((states[0] == states[1]).all())
