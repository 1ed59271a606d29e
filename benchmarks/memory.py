"""How near is computed memory to what a fine-tune takes? Before the first trial, and once three have been measured.

    OMP_NUM_THREADS=1 python benchmarks/memory.py
    python benchmarks/memory.py --layers 12 --hidden 768 --vocabulary 32000 --batches 4 8 16 --lengths 128 256 512
    OMP_NUM_THREADS=1 python benchmarks/memory.py --models bert --layers 1 --hidden 32 --batches 2 4 --lengths 16 32
    python benchmarks/memory.py --search 3 --layers 6 --hidden 512 --heads 8 --vocabulary 16000 --lengths 512

Twelve cells: GPT-2, Llama and BERT, trained in full or by LoRA, with and without gradient checkpointing. For each, a
real Trainer takes three steps with each batch and length. On CUDA memory is the peak of PyTorch's allocator. On a CPU
it is what a process forked for this alone has grown by.

Errors are |log(predicted / measured)|, in percent. "After three" corrects the computed memory by the factor that three
measurements of the cell teach (``engine/estimates.py``), and is judged by the others.

``--search GB`` asks how many fine-tunes of a search run out of memory on a GPU of which so much may be taken: 14 of
GPT-2 with batches of 2 to 64 and sequences up to the last of ``--lengths``, without a limit, with one, and with
``auto_batch``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import tempfile
import threading
import time
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import transformers
from scores import markdown
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

from llamatune_torch import Cause, Integer, Real, tune
from llamatune_torch.engine.estimates import LOCAL, OFF
from llamatune_torch.integrations.trainer.memory import as_measured, first_principles, footprint

MEASURED = 3


class Tokens(torch.utils.data.Dataset[dict[str, Any]]):
    """Sequences of one length, all of one token."""

    def __init__(self, length: int, language_model: bool) -> None:
        self.length, self.language_model = length, language_model

    def __len__(self) -> int:
        return 4096

    def __getitem__(self, i: int) -> dict[str, Any]:
        ids = torch.full((self.length,), 3)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids if self.language_model else 0}


def build(kind: str, lora: bool, checkpointing: bool, batch: int, length: int, options: argparse.Namespace) -> Trainer:
    """A Trainer of one cell, for three steps."""
    layers, hidden, heads, vocabulary = options.layers, options.hidden, options.heads, options.vocabulary
    sizes = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads, "vocab_size": vocabulary}
    positions = max(options.lengths)
    if kind == "gpt2":
        config = GPT2Config(n_layer=layers, n_embd=hidden, n_head=heads, vocab_size=vocabulary, n_positions=positions,
                            pad_token_id=0, bos_token_id=0, eos_token_id=0)  # fmt: skip
        model: Any = GPT2ForSequenceClassification(config)
    elif kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=4 * hidden, max_position_embeddings=positions))
    else:
        config = BertConfig(**sizes, intermediate_size=4 * hidden, max_position_embeddings=positions)
        model = BertForSequenceClassification(config)
    if lora:
        from peft import LoraConfig, get_peft_model

        task = "CAUSAL_LM" if kind == "llama" else "SEQ_CLS"
        model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type=task))
        if checkpointing:
            model.enable_input_require_grads()
    names = TrainingArguments.__dataclass_fields__
    name = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    args = TrainingArguments(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=batch, max_steps=3, report_to=[], save_strategy="no",
        logging_strategy="no", disable_tqdm=True, use_cpu=options.device == "cpu",
        **{name: checkpointing, f"{name}_kwargs": {"use_reentrant": False} if checkpointing else None},
    )  # fmt: skip
    trainer = Trainer(model=model, args=args, train_dataset=Tokens(length, kind == "llama"))
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def measure(make: Any, device: str) -> float:
    """Bytes that three steps of a Trainer take."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        ground = torch.cuda.memory_allocated()
        make().train()
        return float(torch.cuda.max_memory_allocated() - ground)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover
        process, peak = psutil.Process(), 0
        ground = process.memory_info().rss

        def watch() -> None:
            nonlocal peak
            while True:
                peak = max(peak, process.memory_info().rss - ground)
                time.sleep(0.002)

        threading.Thread(target=watch, daemon=True).start()
        make().train()
        os.write(writing, str(peak).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return float(text)


def search(gigabytes: float, options: argparse.Namespace) -> dict[str, list[str | None]]:
    """The cause of each failed trial, ``None`` for the others, of three searches on a GPU of so many GB."""
    share = 1e9 * gigabytes / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(share)
    space = {"learning_rate": Real(1e-5, 1e-2, prior="log-uniform"), "batch": Integer(2, 64, prior="log-uniform"),
             "length": Integer(64, max(options.lengths), prior="log-uniform")}  # fmt: skip

    def factory(params: dict[str, Any]) -> Trainer:
        trainer = build("gpt2", False, False, params["batch"], params["length"], options)
        trainer.args.learning_rate = params["learning_rate"]
        trainer.eval_dataset = torch.utils.data.Subset(trainer.train_dataset, range(4))
        return trainer

    limited = {"constraints": {"memory_gb": f"<= {0.97 * gigabytes:g}"}}
    ways: dict[str, dict[str, Any]] = {"no limit": {}, "with the limit": limited, "auto_batch": {"auto_batch": True}}
    causes: dict[str, list[str | None]] = {}
    for name, way in ways.items():
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            study = tune(factory, space, max_evals=options.trials, strategy="full", output_dir=folder, progress=False,
                         **way)  # fmt: skip
        causes[name] = [trial.cause for trial in study.trials]
        seconds = time.perf_counter() - began
        print(f"{name}: {Counter(causes[name])[Cause.OUT_OF_MEMORY]} of {len(study.trials)} out of memory, "
              f"{seconds:.0f} s", flush=True)  # fmt: skip
    torch.cuda.set_per_process_memory_fraction(1.0)
    return causes


def judge(predicted: np.ndarray, measured: np.ndarray) -> dict[str, list[float]]:
    """Errors in percent before anything is measured, and of the others after ``MEASURED``."""
    off = np.log(measured / predicted)
    first = np.linspace(0, len(off) - 1, MEASURED).round().astype(int)
    factor = off[first].sum() / (MEASURED + LOCAL**2 / OFF**2)
    after = np.delete(off - factor, first)
    return {"before": (100 * abs(off)).tolist(), "after": (100 * abs(after)).tolist()}


def main() -> None:
    """Measures all cells, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["gpt2", "llama", "bert"], choices=["gpt2", "llama", "bert"])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=8000)
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--methods", nargs="+", default=["full", "lora"], choices=["full", "lora"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--search", type=float, metavar="GB", help="search on a GPU of which so much may be taken")
    parser.add_argument("--trials", type=int, default=14, help="of each search")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.search is not None and options.device != "cuda":
        parser.error("--search needs CUDA")
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    if options.search is not None:
        causes = search(options.search, options)
        print(describe_versions(options.device))
        if options.output is not None:
            options.output.write_text(json.dumps({"versions": describe_versions(options.device), **causes}) + "\n")
        return
    if options.device == "cuda":
        torch.ones(8, 8, device="cuda") @ torch.ones(8, 8, device="cuda")  # cuBLAS takes its workspace once
    else:
        build("bert", False, False, 2, 16, options).train()  # libraries are loaded at their first use
    cells = []
    for kind, method, checkpointing in itertools.product(options.models, options.methods, [False, True]):
        make = partial(build, kind, method == "lora", checkpointing)
        began = time.perf_counter()
        configurations = list(itertools.product(options.batches, options.lengths))
        lengths = sorted(options.lengths)
        trainer = make(options.batches[0], lengths[-1], options)
        spread = tuple(sorted({lengths[0], lengths[len(lengths) // 2], lengths[-1]}))
        computed = footprint(trainer, (min(options.batches), max(options.batches)), spread)
        seconds = time.perf_counter() - began
        formula = make(options.batches[0], options.lengths[0], options)
        device = formula.args.device
        predicted = np.array([as_measured(computed.bytes(*pair), device) for pair in configurations])
        by_formula = np.array([as_measured(first_principles(formula, *pair), device) for pair in configurations])
        measured = np.array(
            [measure(partial(make, b, length, options), options.device) for b, length in configurations]
        )
        cell = {"cell": f"{kind}, {method}{', checkpointing' if checkpointing else ''}", "seconds": seconds}
        cell |= {"predicted": predicted.tolist(), "measured": measured.tolist(), **judge(predicted, measured)}
        cell["formula"] = judge(by_formula, measured)["before"]
        cells.append(cell)
        print(
            cell["cell"], [f"{p / 1e6:.0f}/{m / 1e6:.0f}" for p, m in zip(predicted, measured, strict=True)], flush=True
        )
    head = ["", "seconds", "before, median", "before, 90 %", "after three, 90 %", "formula, median"]
    rows = []
    for cell in [*cells, {"cell": "all", "seconds": math.nan, **_together(cells)}]:
        figures = [np.median(cell["before"]), np.percentile(cell["before"], 90), np.percentile(cell["after"], 90)]
        figures = [cell["seconds"], *figures, np.median(cell["formula"])]
        rows.append([cell["cell"], *(f"{figure:.1f}" for figure in figures)])
    print(markdown([head, *rows]))
    versions = describe_versions(options.device)
    print(versions)
    if options.output is not None:
        options.output.write_text(json.dumps({"versions": versions, "cells": cells}) + "\n")


def describe_versions(device: str) -> str:
    """The versions, and the machine."""
    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    python = platform.python_version()
    return f"torch {torch.__version__}, transformers {transformers.__version__}, Python {python}, {name}"


def _together(cells: list[dict[str, Any]]) -> dict[str, list[float]]:
    return {name: [x for cell in cells for x in cell[name]] for name in ("before", "after", "formula")}


if __name__ == "__main__":
    main()
