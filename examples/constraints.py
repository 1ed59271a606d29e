"""Tune a fine-tune under a limit of memory and a limit of time, and see what the limits cost.

The tiny GPT-2 and the texts of `gpt2_cls.py`, so no network is needed. Larger batches need more memory, and longer
warm-up or smaller batches more time; the search learns where the limits lie, and the best trial keeps both. Each trial
has a process of its own, so that its memory is its own. A few minutes on two CPU cores; needs `llamatune-torch[demo]`.

    python examples/constraints.py
    python examples/constraints.py --max-evals 30 --memory-gb 0.7 --seconds 20
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2_cls import TINY_GPT2, Task, UsageError, embedded_splits, load_task
from gpt2_cls import trainer_factory as plain_factory

if TYPE_CHECKING:
    from transformers import Trainer


def trainer_factory(task: Task, params: dict[str, Any]) -> Trainer:
    """Build a fresh `Trainer` for one set of hyperparameters, beta2 of AdamW among them."""
    import transformers

    transformers.logging.set_verbosity_error()  # each trial would report its untrained head
    transformers.logging.disable_progress_bar()
    beta2 = params["beta2"]
    trainer = plain_factory(task, {**{name: params[name] for name in params if name != "beta2"}, "epochs": 1})
    trainer.args.adam_beta2 = beta2  # read when the optimizer is built, at the start of the training
    return trainer


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Tune a tiny GPT-2 under limits of memory and time.")
    parser.add_argument("--max-evals", type=int, default=12, help="fine-tunes (%(default)s)")
    parser.add_argument("--subset", type=int, default=400, help="training texts (%(default)s)")
    parser.add_argument("--memory-gb", type=float, default=0.8, help="limit of a trial's process (%(default)s)")
    parser.add_argument("--seconds", type=float, default=15.0, help="limit of a trial's training (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of tuning and training (%(default)s)")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/constraints"))
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Tune, and print what was found and which limit bound."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported; all that is needed is here

    from llamatune_torch import Integer, Real, relaxations, tune
    from llamatune_torch.tables import trials_table

    task = load_task(str(TINY_GPT2), embedded_splits(args.subset), args.seed, args.output_dir)
    study = tune(
        partial(trainer_factory, task),
        {
            "learning_rate": Real(1e-4, 1e-2, prior="log-uniform"),
            "batch_size": Integer(4, 256, prior="log-uniform"),
            "dropout": Real(0.0, 0.3),
            "warmup": Real(0.0, 0.3),
            "beta2": Real(0.9, 0.999),
            "weight_decay": Real(0.0, 0.3),
        },
        constraints={"memory_gb": f"<= {args.memory_gb}", "seconds": f"<= {args.seconds}"},
        max_evals=args.max_evals,
        strategy="full",
        metric="eval_accuracy",
        isolate=True,
        trial_timeout=max(600.0, 4 * args.seconds),  # for one that hangs
        output_dir=str(args.output_dir),
        overwrite=True,
        seed=args.seed,
    )
    print(f"\n{trials_table(study.trials)}\n\n{study.summary()}")
    if not study.feasible:
        print("No trial keeps the limits: see how near they came, and relax one of them.")
        return
    bound = ", ".join(map(str, study.binding())) or "neither limit"
    print(f"What bound: {bound}.")
    for relaxation in relaxations(study):
        print(f"  {relaxation}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example; the exit status is 2 when the user has to change something."""
    try:
        run(parse_arguments(argv))
    except UsageError as error:
        print(f"constraints.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
