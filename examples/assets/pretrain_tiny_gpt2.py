"""Make the tiny GPT-2 of the embedded example: pretrain it as a language model on WordNet glosses.

Trains a 2,000-token byte-level BPE tokenizer and a GPT-2 of two layers (232,192 parameters) to
predict the next token of a gloss, on texts that are in neither the validation nor the test split
of the example. Runs on a CPU: seven to eight minutes of one core. The weights in
`tiny_gpt2_glosses/` came from

    OMP_NUM_THREADS=1 python examples/assets/pretrain_tiny_gpt2.py

and running it again with the same versions and number of threads gives the same weights.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer
from transformers.utils.logging import disable_progress_bar

ASSETS = Path(__file__).resolve().parent
sys.path.insert(0, str(ASSETS.parent))  # the example's own data code: one split for both
from wordnet_glosses import pretraining_texts, read_glosses, split_glosses  # noqa: E402

VOCABULARY = 2_000
CONTEXT = 64  # tokens; the median gloss has 19, and 1.4 % are cut
END = "<|endoftext|>"
IGNORED = -100  # the label of a padded position
BATCH = 64
LEARNING_RATE = 3e-3
WARMUP_STEPS = 100
WEIGHT_DECAY = 0.1


def train_tokenizer(texts: list[str]) -> GPT2Tokenizer:
    """A GPT-2 tokenizer with a small vocabulary; the end of a text doubles as the padding."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=VOCABULARY, min_frequency=2, special_tokens=[END], show_progress=False)
    learnt = json.loads(bpe.to_str())["model"]
    merges: Any = [(left, right) for left, right in learnt["merges"]]
    return GPT2Tokenizer(vocab=learnt["vocab"], merges=merges, pad_token=END, model_max_length=CONTEXT)


def encode(tokenizer: GPT2Tokenizer, texts: list[str]) -> list[list[int]]:
    """Token ids of each text with the end-of-text token behind it, at most CONTEXT long."""
    rows: list[list[int]] = tokenizer(texts, truncation=True, max_length=CONTEXT - 1)["input_ids"]
    return [[*row, tokenizer.eos_token_id] for row in rows]


def batches(rows: list[list[int]], rng: random.Random | None) -> Iterator[list[list[int]]]:
    """Batches of texts of like length (little padding), in random order if there is an `rng`."""
    order = list(range(len(rows)))
    if rng is not None:
        rng.shuffle(order)
    order.sort(key=lambda row: len(rows[row]))  # stable: equal lengths stay shuffled
    groups = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    if rng is not None:
        rng.shuffle(groups)
    for group in groups:
        yield [rows[row] for row in group]


def token_loss(model: GPT2LMHeadModel, batch: list[list[int]], end: int) -> tuple[torch.Tensor, int]:
    """Mean cross-entropy of the next token, in nats, and how many tokens were predicted."""
    width = max(len(row) for row in batch)
    ids = torch.full((len(batch), width), end)  # `batch x width`
    labels = torch.full((len(batch), width), IGNORED)
    for index, row in enumerate(batch):
        ids[index, : len(row)] = labels[index, : len(row)] = torch.tensor(row)
    output = model(input_ids=ids, attention_mask=(labels != IGNORED).long())
    logits = output.logits[:, :-1]  # `batch x (width - 1) x vocabulary`
    targets = labels[:, 1:]
    loss = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), ignore_index=IGNORED
    )
    return loss, int((targets != IGNORED).sum())


@torch.no_grad()
def held_out_loss(model: GPT2LMHeadModel, rows: list[list[int]], end: int) -> float:
    """Mean loss a token over all `rows`, dropout off."""
    model.eval()
    total, tokens = 0.0, 0
    for batch in batches(rows, rng=None):
        loss, count = token_loss(model, batch, end)
        total, tokens = total + loss.item() * count, tokens + count
    return total / tokens


def main() -> None:
    """Train, print the loss of every epoch, save model and tokenizer."""
    parser = argparse.ArgumentParser(description="Pretrain the tiny GPT-2 of the embedded example.")
    parser.add_argument("--output-dir", type=Path, default=ASSETS / "tiny_gpt2_glosses")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--texts", type=int, help="train on this many texts only (a quick check)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    disable_progress_bar()

    glosses = read_glosses()
    splits = split_glosses(glosses)
    texts = pretraining_texts(glosses)[: args.texts]
    # The vocabulary is learnt from the labelled training texts, like the classifier itself.
    tokenizer = train_tokenizer([example.text for example in splits.train])
    end = tokenizer.eos_token_id
    rows = encode(tokenizer, texts)
    held_out = encode(tokenizer, [example.text for example in splits.validation + splits.test])

    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=CONTEXT,
        n_embd=64,
        n_layer=2,
        n_head=2,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        resid_pdrop=0.0,  # four passes over the data do not overfit so small a model
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY)
    steps = args.epochs * math.ceil(len(rows) / BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / WARMUP_STEPS, 0.5 + 0.5 * math.cos(math.pi * step / steps)),
    )
    print(f"{len(rows):,} texts, {model.num_parameters():,} parameters, {steps:,} steps")

    started, cpu = time.perf_counter(), time.process_time()
    for epoch in range(args.epochs):
        model.train()
        for batch in batches(rows, rng):
            loss, _ = token_loss(model, batch, end)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        score = held_out_loss(model, held_out, end)
        print(
            f"epoch {epoch + 1}: held-out loss {score:.3f} (perplexity {math.exp(score):.1f}), "
            f"{time.perf_counter() - started:.0f} s, {time.process_time() - cpu:.0f} CPU-s",
            flush=True,
        )

    # What a classifier starts from: GPT-2's usual dropout, and no trace of this run's settings.
    for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        setattr(model.config, name, 0.1)
    model.save_pretrained(args.output_dir)
    tokenizer.save_pretrained(args.output_dir)
    print(f"saved to {args.output_dir}")


if __name__ == "__main__":
    main()
