"""A real Trainer on a real GPT-2 of a few thousand weights, trained in a second."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2ForSequenceClassification, Trainer, TrainingArguments

VOCABULARY = 16


class Parity(Dataset[dict[str, Any]]):
    """Sequences of four tokens; the label says whether the first one is in the upper half."""

    def __init__(self, n: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.tokens = torch.randint(VOCABULARY, (n, 4), generator=generator)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"input_ids": self.tokens[i], "labels": int(self.tokens[i, 0] >= VOCABULARY // 2)}


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((np.argmax(prediction.predictions, -1) == prediction.label_ids).mean())}


def tiny_model(**config: Any) -> GPT2ForSequenceClassification:
    return GPT2ForSequenceClassification(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=8,
            n_embd=8,
            n_layer=1,
            n_head=2,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=0,
            **config,
        )
    )


def tiny_trainer(params: Mapping[str, Any], folder: Path, **changes: Any) -> Trainer:
    """A Trainer for ``params["learning_rate"]``; ``changes`` go to its arguments or to the Trainer itself."""
    of_trainer = {
        name: changes.pop(name)
        for name in ("model", "eval_dataset", "compute_metrics", "processing_class")
        if name in changes
    }
    arguments: dict[str, Any] = {
        "output_dir": str(folder / "own"),
        "learning_rate": params["learning_rate"],
        "num_train_epochs": 2,
        "per_device_train_batch_size": 16,
        "eval_strategy": "epoch",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        **changes,
    }
    return Trainer(
        **{
            "model": tiny_model(),
            "args": TrainingArguments(**arguments),
            "train_dataset": Parity(64, seed=0),
            "eval_dataset": Parity(32, seed=1),
            "compute_metrics": accuracy,
            **of_trainer,
        }
    )
