"""Fine-tune GPT-2 to classify texts, and let `llamatune_torch` choose the hyperparameters.

Tunes learning rate, batch size, epochs, weight decay, warm-up and dropout of a Hugging Face
`Trainer`; then compares the best configuration with the defaults of `TrainingArguments` on a test
split that the tuning never saw.

The real thing: GPT-2 and any text classification data set, from the Hugging Face hub or from local
folders. Meant for a GPU (8 GB should do); on a CPU a trial of GPT-2 takes hours.

    python examples/gpt2_cls.py --model gpt2 --dataset ag_news --subset 4000 --trials 20
    python examples/gpt2_cls.py --model ./my_gpt2 --dataset ./my_csv_folder --label-column topic

Without a network: a tiny pretrained GPT-2 (232 k parameters) that comes with this file, and
WordNet glosses in eight topics. It shows the tuning, not the state of the art (see its model card
in `assets/tiny_gpt2_glosses/`). Three minutes on two CPU cores; needs `llamatune-torch[demo]`.
Tensors this small gain nothing from threads: on a busy machine set OMP_NUM_THREADS=1.

    python examples/gpt2_cls.py
    python examples/gpt2_cls.py --smoke        # two small trials: does everything run?
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies

# Heavy imports (torch, transformers, datasets) wait until they are needed: `--help` is instant.
from wordnet_glosses import LabelledText, Splits, read_glosses, split_glosses

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase, Trainer

TINY_GPT2 = Path(__file__).resolve().parent / "assets" / "tiny_gpt2_glosses"
MAX_TOKENS = 128  # longer texts are cut
TEST_TEXTS = 2_000  # at most

# What `TrainingArguments` and GPT-2's configuration say when nobody tunes anything.
DEFAULTS: dict[str, Any] = {
    "learning_rate": 5e-5,
    "batch_size": 8,
    "epochs": 3,
    "weight_decay": 0.0,
    "warmup": 0.0,
    "dropout": 0.1,
}

# Guesses, in this order, when --text-column or --label-column is not given.
TEXT_COLUMNS = ("text", "sentence", "content", "review", "document", "question", "tweet", "title")
LABEL_COLUMNS = ("label", "labels", "category", "class", "target", "topic", "intent", "sentiment")
# How models call their dropout: GPT-2's names first, BERT's after them.
DROPOUTS = (
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "dropout",
    "attention_dropout",
)


class UsageError(Exception):
    """Something the user can put right; shown as one sentence, without a traceback."""


# --- Load data ----------------------------------------------------------------------------------


def embedded_splits(subset: int) -> Splits:
    """WordNet glosses: `subset` texts to train, half as many to validate, up to 2,000 to test."""
    try:
        splits = split_glosses(read_glosses())
    except FileNotFoundError as error:
        raise UsageError(str(error)) from error
    return Splits(
        train=splits.train[:subset],
        validation=splits.validation[: subset // 2],
        test=splits.test[: test_size(subset)],
    )


def hub_splits(dataset: str, subset: int, text_column: str | None = None, label_column: str | None = None) -> Splits:
    """The texts of a data set on the hub or in a local folder, in sizes like `embedded_splits`.

    A validation or test split that the data set lacks, or keeps without labels, is cut from its
    training split, always in the same way: results of different seeds can be compared. A text of
    the test split is dropped wherever else it occurs.
    """
    from datasets import load_dataset

    try:
        loaded = load_dataset(dataset)
    except (OSError, ValueError) as error:  # no such data set, no network, not a data folder
        raise UsageError(cannot_load("dataset", dataset, error)) from error
    if "train" not in loaded:
        raise UsageError(f"{dataset} has no split called train, only {', '.join(loaded)}.")

    rest = loaded["train"].shuffle(seed=0)
    columns = find_columns(rest, text_column, label_column)
    parts: list[list[LabelledText]] = []
    for names, size in (
        (("test",), test_size(subset)),
        (("validation", "valid", "dev"), subset // 2),
    ):
        found = next((loaded[name] for name in names if name in loaded), None)
        part = labelled_texts(head(found.shuffle(seed=0), size), *columns) if found else []
        if not part:  # missing or unlabelled: at most a fifth of the training rows
            size = min(size, len(loaded["train"]) // 5)
            part = labelled_texts(head(rest, size), *columns)
            rest = rest.select(range(size, len(rest)))
        parts.append(part)
    test, validation = parts
    train = labelled_texts(head(rest, subset), *columns)

    in_test = {example.text for example in test}
    validation = [example for example in validation if example.text not in in_test]
    held_out = in_test | {example.text for example in validation}
    train = [example for example in train if example.text not in held_out]
    splits = Splits(train, validation, test)
    for name, part in splits._asdict().items():
        if not part:
            raise UsageError(f"{dataset} leaves no labelled texts for the {name} split.")
    return splits


def find_columns(data: Dataset, text: str | None, label: str | None) -> tuple[str, str]:
    """The columns of text and label: as asked for, or guessed from their usual names and types."""
    from datasets import ClassLabel

    def is_string(column: str) -> bool:
        return getattr(data.features[column], "dtype", None) in ("string", "large_string")

    def choose(what: str, asked: str | None, usual: tuple[str, ...], fitting: list[str]) -> str:
        if asked is not None and asked in data.column_names:
            return asked
        by_name = [name for name in usual if name in data.column_names]
        if asked is None and (by_name or len(fitting) == 1):
            return (by_name or fitting)[0]
        trouble = f"No column {asked!r}" if asked else f"Cannot tell which column is the {what}"
        raise UsageError(f"{trouble}; choose with --{what}-column among: {', '.join(data.column_names)}.")

    classes = [name for name, kind in data.features.items() if isinstance(kind, ClassLabel)]
    label = choose("label", label, LABEL_COLUMNS, classes)
    strings = [name for name in data.column_names if is_string(name) and name != label]
    text = choose("text", text, TEXT_COLUMNS, strings)
    if not is_string(text):
        raise UsageError(f"The text column {text!r} holds no strings; choose with --text-column.")
    return text, label


def labelled_texts(data: Dataset, text_column: str, label_column: str) -> list[LabelledText]:
    """Rows as texts and class names; rows without a text or a label are left out."""
    names = getattr(data.features[label_column], "names", None)
    examples = []
    for text, label in zip(data[text_column], data[label_column], strict=True):
        unlabelled = label is None or (names is not None and label < 0)
        if text and text.strip() and not unlabelled:
            examples.append(LabelledText(text, names[label] if names else str(label)))
    return examples


def head(data: Dataset, size: int) -> Dataset:
    """The first `size` rows, or all if there are fewer."""
    return data.select(range(min(size, len(data))))


def test_size(subset: int) -> int:
    """As many test texts as the data has to offer; fewer when the whole run is small."""
    return min(TEST_TEXTS, 2 * subset)


# --- Train one configuration --------------------------------------------------------------------


class Task(NamedTuple):
    """All that the trials share."""

    model: str
    tokenizer: PreTrainedTokenizerBase
    labels: list[str]
    train: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    test: list[dict[str, Any]]
    seed: int
    output_dir: Path


def load_task(model: str, splits: Splits, seed: int, output_dir: Path) -> Task:
    """Load the tokenizer and turn the texts into token ids, once for all trials."""
    from transformers import AutoConfig, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
        config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise UsageError(cannot_load("model", model, error)) from error
    if tokenizer.pad_token is None:  # GPT-2 has none
        tokenizer.pad_token = tokenizer.eos_token
    labels = sorted({example.label for split in splits for example in split})
    if not 2 <= len(labels) <= len(splits.train) // 2:
        raise UsageError(
            f"The label column has {len(labels)} different values in {len(splits.train)} training "
            "texts; choose another one with --label-column, or more texts with --subset."
        )
    longest = min(MAX_TOKENS, getattr(config, "max_position_embeddings", MAX_TOKENS))

    def encode(examples: list[LabelledText]) -> list[dict[str, Any]]:
        rows = tokenizer([example.text for example in examples], truncation=True, max_length=longest)
        return [
            {"input_ids": ids, "attention_mask": mask, "labels": labels.index(example.label)}
            for ids, mask, example in zip(rows["input_ids"], rows["attention_mask"], examples, strict=True)
        ]

    train, validation, test = (encode(split) for split in splits)
    return Task(model, tokenizer, labels, train, validation, test, seed, output_dir)


def trainer_factory(task: Task, params: dict[str, Any]) -> Trainer:
    """Build a fresh `Trainer` with a fresh model for one set of hyperparameters."""
    import torch
    from transformers import (
        AutoConfig,
        AutoModelForSequenceClassification,
        PrinterCallback,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    config = AutoConfig.from_pretrained(
        task.model,
        num_labels=len(task.labels),
        id2label=dict(enumerate(task.labels)),
        label2id={label: index for index, label in enumerate(task.labels)},
        pad_token_id=task.tokenizer.pad_token_id,
    )
    dropouts = [name for name in DROPOUTS if hasattr(config, name)]
    if not dropouts:
        raise UsageError(f"The configuration of {task.model} names no dropout that could be tuned.")
    for name in dropouts:
        setattr(config, name, params["dropout"])
    set_seed(task.seed)  # the classification head starts at random
    model = AutoModelForSequenceClassification.from_pretrained(task.model, config=config, dtype=torch.float32)
    arguments = TrainingArguments(
        output_dir=str(task.output_dir),
        learning_rate=params["learning_rate"],
        per_device_train_batch_size=params["batch_size"],
        per_device_eval_batch_size=64,
        num_train_epochs=params["epochs"],
        weight_decay=params["weight_decay"],
        warmup_steps=params["warmup"],  # below 1: a share of all steps
        eval_strategy="epoch",
        logging_strategy="epoch",
        save_strategy="no",
        metric_for_best_model="accuracy",
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        report_to="none",
        seed=task.seed,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=task.train,
        eval_dataset=task.validation,
        processing_class=task.tokenizer,
        compute_metrics=accuracy,
    )
    trainer.remove_callback(PrinterCallback)  # what disable_tqdm puts in the place of the bar
    return trainer


def accuracy(prediction: Any) -> dict[str, float]:
    """Share of the texts whose class is the most probable one."""
    right = prediction.predictions.argmax(axis=-1) == prediction.label_ids
    return {"accuracy": float(right.mean())}


def test_accuracy(task: Task, folder: Path) -> float:
    """Accuracy on the test split of a model saved in `folder`."""
    trainer = trainer_factory(task._replace(model=str(folder)), DEFAULTS)
    test: Any = task.test  # annotated as a torch Dataset, but a list of rows is one as well
    return float(trainer.evaluate(test)["eval_accuracy"])


# --- Tell the story -----------------------------------------------------------------------------


def cannot_load(what: str, name: str, error: Exception) -> str:
    """Say why a model or data set cannot be loaded, and what to do, in one sentence."""
    if os.environ.get("HF_HUB_OFFLINE") == "1" and not Path(name).exists():
        return (
            f"The {what} {name!r} is neither a local folder nor in the cache, and the Hugging Face "
            f"hub cannot be reached: connect to the network, give --{what} a local folder, or "
            "leave out --model and --dataset to run the embedded example."
        )
    reason = " ".join(str(error).split())
    return f"Cannot load the {what} {name!r}: {reason}"


def hub_reachable(seconds: float = 2.0) -> bool:
    """Whether the hub (or the proxy on the way to it) answers; libraries try for most of a minute.

    The name look-up has no time limit of its own, so the attempt runs in a thread.
    """
    url = getproxies().get("https") or os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    address = urlsplit(url)
    answers: list[bool] = []

    def connect() -> None:
        try:
            port = address.port or (443 if address.scheme == "https" else 80)
            socket.create_connection((address.hostname or "", port), timeout=seconds).close()
            answers.append(True)
        except OSError:
            pass

    attempt = threading.Thread(target=connect, daemon=True)
    attempt.start()
    attempt.join(seconds)
    return bool(answers)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Fine-tune GPT-2 for text classification with tuned hyperparameters.",
        epilog="Without --model and --dataset: a tiny GPT-2 on WordNet glosses, no network needed.",
    )
    parser.add_argument("--model", help="hub id or local folder (default: gpt2, if --dataset)")
    parser.add_argument("--dataset", help="hub id or local folder (default: ag_news, if --model)")
    parser.add_argument("--text-column", help="column with the text (default: guess)")
    parser.add_argument("--label-column", help="column with the class (default: guess)")
    parser.add_argument("--subset", type=int, default=1_200, help="training texts (%(default)s)")
    parser.add_argument("--trials", type=int, default=12, help="full trainings, as a budget (%(default)s)")
    parser.add_argument(
        "--strategy",
        choices=("auto", "screen", "full", "successive_halving", "asha", "hyperband", "median", "top_k"),
        default="auto",
        help="which runs are trained to their end: auto pauses those that begin badly (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of tuning and training (%(default)s)")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/gpt2_cls"))
    parser.add_argument("--smoke", action="store_true", help="2 trials on 160 texts")
    args = parser.parse_args(argv)
    if args.smoke:
        args.trials, args.subset = 2, 160
    if args.trials < 1 or args.subset < 16:
        parser.error("--trials must be at least 1 and --subset at least 16")
    return args


def run(args: argparse.Namespace) -> None:
    """Load, train with the defaults, tune, compare."""
    embedded = not args.model and not args.dataset
    model, dataset = args.model or "gpt2", args.dataset or "ag_news"
    on_hub = not embedded and not (Path(model).is_dir() and Path(dataset).is_dir())
    if not on_hub or (os.environ.get("HF_HUB_OFFLINE") != "1" and not hub_reachable()):
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers and datasets are imported

    import datasets
    import transformers

    from llamatune_torch import Integer, Real, tune
    from llamatune_torch.tables import trials_table

    transformers.logging.set_verbosity_error()  # each trial would report its untrained head
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()

    if embedded:
        minutes = "" if args.smoke else ", about 3 minutes on 2 cores"
        print(f"Embedded example: a tiny GPT-2 on WordNet glosses in 8 topics{minutes}.")
        model, splits = str(TINY_GPT2), embedded_splits(args.subset)
    else:
        print(f"Fine-tuning {model} on {dataset}.")
        splits = hub_splits(dataset, args.subset, args.text_column, args.label_column)
    task = load_task(model, splits, args.seed, args.output_dir)
    print(
        f"{len(task.train)} texts to train, {len(task.validation)} to tune by, {len(task.test)} "
        f"to test at the end; {len(task.labels)} classes: {', '.join(task.labels)[:200]}"
    )

    print("First, one training with the defaults of TrainingArguments.", flush=True)
    trainer = trainer_factory(task, DEFAULTS)
    trainer.train()
    print(f"Validation accuracy {trainer.evaluate()['eval_accuracy']:.3f}.", flush=True)
    trainer.save_model(str(args.output_dir / "defaults"))
    del trainer

    study = tune(
        partial(trainer_factory, task),
        {
            "learning_rate": Real(1e-5, 5e-3, prior="log-uniform"),
            "batch_size": Integer(8, 64, prior="log-uniform"),
            "epochs": Integer(1, 4),
            "weight_decay": Real(0.0, 0.3),
            "warmup": Real(0.0, 0.3),
            "dropout": Real(0.0, 0.3),
        },
        max_evals=args.trials,
        strategy=args.strategy,
        metric="eval_accuracy",
        keep="best",
        output_dir=str(args.output_dir),
        overwrite=True,  # what an earlier run has left there
        seed=args.seed,
    )

    print(f"\n{trials_table(study.trials)}\n")
    if not study.completed:  # Ctrl-C in the first trial, or every trial failed
        print(study.summary())
        return
    tried, trained = len(study.trials), study.trained
    if any(trial.pauses for trial in study.trials):
        print(f"{tried} configurations for the price of {trained:.3g} full runs: {tried - trained:.3g} saved.")
    print("Best: " + ", ".join(f"{name} {study.best_params[name]:.3g}" for name in DEFAULTS))
    default = test_accuracy(task, args.output_dir / "defaults")
    tuned = test_accuracy(task, args.output_dir / "best")
    error = (tuned * (1 - tuned) / len(task.test)) ** 0.5
    print(
        f"Accuracy on {len(task.test)} test texts that the tuning never saw:\n"
        f"  defaults of TrainingArguments  {default:.3f}\n"
        f"  best configuration             {tuned:.3f} +- {error:.3f} (standard error), "
        f"{abs(tuned - default) * 100:.1f} points {'better' if tuned >= default else 'worse'}"
    )
    print(f"The tuned model is in {args.output_dir / 'best'}.")
    page = args.output_dir / "report.html"
    study.report(page, name="gpt2-cls")
    print(f"What the study tells is on one page: {page}.")
    if embedded:
        print(
            "The real thing: python examples/gpt2_cls.py --model gpt2 --dataset ag_news "
            "--subset 4000 --trials 20 --output-dir runs/ag_news"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example; the exit status is 2 when the user has to change something."""
    args = parse_arguments(argv)
    try:
        run(args)
    except UsageError as error:
        print(f"gpt2_cls.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
