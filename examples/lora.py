"""Fine-tune all weights of a Llama, or an adapter (LoRA) of a rank that the search finds; the default comes first.

Starts from the ready-made space for adapters, in which a rank of 0 is added: no adapter, but all weights. The first
trial is the default, what one would use without a search, and the summary says what the search has gained on it.

Without a network: a Llama of 0.1 million parameters, pretrained here on WordNet's glosses of animals, artifacts and
other topics, byte by byte. It is fine-tuned on glosses of food. A minute on two CPU cores; needs
`llamatune-torch[demo,trl]`. With `--model`, a model from the Hugging Face hub or a local folder instead, for a GPU.

    python examples/lora.py
    python examples/lora.py --model Qwen/Qwen2.5-0.5B --max-evals 20
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gpt2_cls import UsageError, cannot_load
from wordnet_glosses import pretraining_texts, read_glosses, split_glosses

if TYPE_CHECKING:
    from transformers import Trainer

LENGTH = 64  # tokens in a sequence
TOPIC = "food"
PRETRAINING_RATE = 3e-3
PRETRAINING_BATCH = 16


class Task(NamedTuple):
    """All that the trials share."""

    model: str
    train: list[dict[str, list[int]]]
    validation: list[dict[str, list[int]]]
    output_dir: Path


def trainer_factory(task: Task, params: dict[str, Any]) -> Trainer:
    """Build a fresh `Trainer`: with an adapter, or of all weights where the rank is 0."""
    import torch
    import transformers
    from peft import get_peft_model

    from llamatune_torch import lora_config, spaces, training_arguments

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(task.model, dtype=torch.float32)
    adapter = lora_config(params)
    if adapter is None:  # all weights want a tenth of an adapter's learning rate
        params = {**params, "learning_rate": params["learning_rate"] / spaces.LORA_FACTOR}
    else:
        model = get_peft_model(model, adapter)
    base = transformers.TrainingArguments(
        output_dir=str(task.output_dir),
        per_device_train_batch_size=16,
        per_device_eval_batch_size=64,
        eval_strategy="epoch",
        logging_strategy="no",
        save_strategy="no",
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        report_to="none",
    )
    data: Any = task  # annotated as torch Datasets, but lists of rows will do
    arguments = training_arguments(params, base)
    trainer = transformers.Trainer(model, arguments, train_dataset=data.train, eval_dataset=data.validation)
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def search_space(is_tiny: bool) -> Any:
    """The ready-made space for adapters, with no adapter as one more choice; a tiny model learns faster."""
    from llamatune_torch import Integer, Real, SearchSpace, spaces

    space = spaces.lora().without("lora_dropout") | {"rank": Integer(4, 64, powers_of=2, special=[0], belief=64)}
    if not is_tiny:
        return space
    rate = Real(1e-3, 1e-1, prior="log-uniform", belief=1e-2)
    return space | SearchSpace(
        {"learning_rate": rate, "rank": Integer(1, 16, powers_of=2, special=[0])},
        default={"learning_rate": 1e-2, "rank": 16},
    )


def blocks(texts: Iterable[str], encode: Callable[[str], list[int]]) -> list[dict[str, list[int]]]:
    """Texts one after the other, cut into sequences of equal length."""
    tokens = [token for text in texts for token in encode(f"{text}\n")]
    starts = range(0, len(tokens) - LENGTH + 1, LENGTH)
    return [{"input_ids": tokens[i : i + LENGTH], "labels": tokens[i : i + LENGTH]} for i in starts]


def as_bytes(text: str) -> list[int]:
    """A text as tokens of the tiny model: its bytes."""
    return list(text.encode())


def pretrained(texts: Sequence[str], steps: int, folder: Path) -> str:
    """Pretrain the tiny Llama, which takes seconds; the folder it is saved in."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=256, max_position_embeddings=LENGTH, bos_token_id=0, eos_token_id=10, **shape)
    model = LlamaForCausalLM(config)
    rows = torch.tensor([block["input_ids"] for block in blocks(texts, as_bytes)])
    optimizer = torch.optim.AdamW(model.parameters(), PRETRAINING_RATE)
    for _ in range(steps):
        batch = rows[torch.randint(len(rows), (PRETRAINING_BATCH,))]
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    return str(folder)


def load_task(args: argparse.Namespace) -> Task:
    """Read the texts, and load or pretrain the model."""
    import transformers

    transformers.logging.disable_progress_bar()
    try:
        glosses = read_glosses()
    except FileNotFoundError as error:
        raise UsageError(str(error)) from error
    splits = split_glosses(glosses)
    train = [example.text for example in splits.train if example.label == TOPIC][: args.subset]
    validation = [example.text for example in splits.validation if example.label == TOPIC]
    model, encode = args.model, as_bytes
    if model is None:
        model = pretrained(pretraining_texts(glosses), args.pretraining_steps, args.output_dir / "tiny_llama")
    else:
        try:
            encode = transformers.AutoTokenizer.from_pretrained(model).encode
        except (OSError, ValueError) as error:
            raise UsageError(cannot_load("model", model, error)) from error
    return Task(model, blocks(train, encode), blocks(validation, encode), args.output_dir)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Tune all weights or an adapter of a Llama; the default comes first.")
    parser.add_argument("--model", help="a causal model on the hub or in a folder; by default a tiny Llama")
    parser.add_argument("--max-evals", type=int, default=12, help="fine-tunes (%(default)s)")
    parser.add_argument("--subset", type=int, default=600, help="training texts (%(default)s)")
    parser.add_argument("--pretraining-steps", type=int, default=400, help="of the tiny Llama (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of tuning and training (%(default)s)")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/lora"))
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Tune, and print what was found next to the default."""
    if args.model is None:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported; all that is needed is here

    from llamatune_torch import tune
    from llamatune_torch.tables import trials_table

    study = tune(
        partial(trainer_factory, load_task(args)),
        search_space(is_tiny=args.model is None),
        metric="eval_loss",
        max_evals=args.max_evals,
        strategy="full",
        output_dir=str(args.output_dir),
        seed=args.seed,
    )
    print(f"\n{trials_table(study.trials)}\n\n{study.summary()}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example; the exit status is 2 when the user has to change something."""
    try:
        run(parse_arguments(argv))
    except UsageError as error:
        print(f"lora.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
