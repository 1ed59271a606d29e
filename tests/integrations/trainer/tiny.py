"""A real Trainer on a real GPT-2 of a thousand weights, trained in a fraction of a second."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from llamatune_torch import LlamaTune, Real, Study, tune
from llamatune_torch.integrations.trainer.folders import Folders

VOCABULARY = 16
CHECKPOINTS = {"save_strategy": "epoch", "load_best_model_at_end": True}
SPACE = {"learning_rate": Real(1e-3, 1e-1, prior="log-uniform")}
OF_TRAINER = (
    "model",
    "model_init",
    "train_dataset",
    "eval_dataset",
    "compute_metrics",
    "compute_loss_func",
    "callbacks",
)


class Parity(Dataset[dict[str, Any]]):
    """Sequences of four tokens; the label says whether the first one is in the upper half."""

    def __init__(self, n: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        # Without token 0: it pads, and the model would warn that it cannot tell.
        self.tokens = torch.randint(1, VOCABULARY, (n, 4), generator=generator)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {
            "input_ids": self.tokens[i],
            "attention_mask": torch.ones(4, dtype=torch.long),
            "labels": int(self.tokens[i, 0] >= VOCABULARY // 2),
        }


class Text(Parity):
    """The same sequences, to predict the next token."""

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"input_ids": self.tokens[i], "labels": self.tokens[i]}


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((np.argmax(prediction.predictions, -1) == prediction.label_ids).mean())}


def scripted(scores: Iterable[float], name: str = "score") -> Callable[[Any], dict[str, float]]:
    """A ``compute_metrics`` that reports these scores, one an evaluation."""
    remaining = iter(scores)
    return lambda prediction: {name: next(remaining)}


def tiny_model(**config: Any) -> GPT2ForSequenceClassification:
    return GPT2ForSequenceClassification(
        GPT2Config(
            **{
                "vocab_size": VOCABULARY,
                "n_positions": 8,
                "n_embd": 8,
                "n_layer": 1,
                "n_head": 2,
                "pad_token_id": 0,
                "bos_token_id": 0,
                "eos_token_id": 0,
                **config,
            }
        )
    )


def language_model(**config: Any) -> GPT2LMHeadModel:
    return GPT2LMHeadModel(tiny_model(**config).config)


def text_trainer(params: Mapping[str, Any], folder: Path, **changes: Any) -> Trainer:
    """``tiny_trainer`` with a language model, which has a loss and no other metric."""
    data = {"train_dataset": Text(32, seed=0), "eval_dataset": Text(32, seed=1), "compute_metrics": None}
    return tiny_trainer(params, folder, **{"model": language_model(), **data, **changes})


def tiny_trainer(params: Mapping[str, Any], folder: Path, kind: type[Trainer] = Trainer, **changes: Any) -> Trainer:
    """Four steps in two epochs; ``changes`` go to the TrainingArguments or to the Trainer itself."""
    of_trainer: dict[str, Any] = {
        "train_dataset": Parity(32, seed=0),
        "eval_dataset": Parity(32, seed=1),
        "compute_metrics": accuracy,
    }
    if "model_init" not in changes:
        of_trainer["model"] = changes.pop("model", None) or tiny_model()
    of_trainer |= {name: changes.pop(name) for name in (*OF_TRAINER, "processing_class") if name in changes}
    arguments: dict[str, Any] = {
        "output_dir": str(folder / "own"),
        "learning_rate": params["learning_rate"],
        "num_train_epochs": 2,
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 32,
        "eval_strategy": "epoch",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        **changes,
    }
    trainer = kind(args=arguments.pop("args", None) or TrainingArguments(**arguments), **of_trainer)
    trainer.remove_callback(PrinterCallback)
    return trainer


def tuned(tmp_path: Path, factory: Callable[[Any], Any] | None = None, **arguments: Any) -> Study:
    """A search of one trial, unless told otherwise; without ``factory``, ``trainer`` holds tiny_trainer's changes."""
    changes = arguments.pop("trainer", {})
    search: dict[str, Any] = {
        "space": SPACE,
        "max_evals": 1,
        "n_initial": 50,  # the surrogate has its own tests
        "progress": False,
        "output_dir": tmp_path / "out",
        **arguments,
    }
    return tune(factory or (lambda params: tiny_trainer(params, tmp_path, **changes)), **search)


def left_in(folder: Path) -> list[str]:
    """The names of what a search has left in its output_dir, which may not be there at all."""
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def folders_of(folder: Path, optimizer: LlamaTune, name: str = "study") -> Folders:
    """The folders of a stored study, or of one that is under way."""
    return Folders(folder, name, optimizer.token)


class At(TrainerCallback):
    """Calls ``act(control)`` at an event, such as "on_step_end", when the step is ``step``."""

    def __init__(self, event: str, step: int, act: Callable[[Any], Any]) -> None:
        def listen(args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step:
                act(control)

        setattr(self, event, listen)


def raises(kind: type[BaseException], *args: Any) -> Callable[[Any], Any]:
    """A function that raises a fresh ``kind(*args)``; one that was raised before would hold the frames it passed."""

    def act(*_: Any) -> Any:
        raise kind(*args)

    return act


class Calls:
    """A factory that remembers its trainers."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.folder = folder
        self.changes = changes
        self.trainers: list[Trainer] = []

    def __call__(self, params: Any) -> Trainer:
        self.trainers.append(tiny_trainer(params, self.folder, **self.changes))
        return self.trainers[-1]


def failing_first(folder: Path, failure: Callable[[Any], Trainer]) -> Callable[[Any], Trainer]:
    """A factory whose first trial is ``failure``'s and whose second is sound."""
    calls: list[int] = []

    def factory(params: Any) -> Trainer:
        calls.append(1)
        return failure(params) if len(calls) == 1 else tiny_trainer(params, folder)

    return factory


def evaluated(model: Path, folder: Path) -> dict[str, float]:
    """The metrics of a model on disk, by a Trainer of its own."""
    loaded = AutoModelForSequenceClassification.from_pretrained(model)
    return tiny_trainer({"learning_rate": 0.0}, folder, model=loaded).evaluate()
