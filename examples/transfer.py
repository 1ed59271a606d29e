"""Tune a small model, then a larger one that learns from the first search; how many evaluations does that save?

The tiny GPT-2 and the texts of `gpt2_cls.py`, so no network is needed: first with half of its layers, then whole, once
with the past search and once without. All runs are trained to their end, so that evaluations can be compared. Some
minutes on two CPU cores; needs `llamatune-torch[demo]`.

    python examples/transfer.py
    python examples/transfer.py --max-evals 12 --small-evals 12
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2_cls import TINY_GPT2, Task, UsageError, embedded_splits, load_task, trainer_factory

if TYPE_CHECKING:
    from llamatune_torch import Study

SEEDS_LUCK = 0.014  # the standard deviation of the accuracy over seeds


def with_half_the_layers(task: Task, folder: Path) -> Task:
    """The same task for a model with the first half of the layers, which is written to a folder."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(task.model)
    config.num_hidden_layers //= 2
    AutoModelForCausalLM.from_pretrained(task.model, config=config).save_pretrained(folder)
    return task._replace(model=str(folder))


def count_parameters(task: Task) -> float:
    """The number of parameters of a task's model."""
    from transformers import AutoModelForCausalLM

    return float(AutoModelForCausalLM.from_pretrained(task.model).num_parameters())


def best_so_far(study: Study) -> list[float]:
    """The best accuracy after each evaluation."""
    values = [trial.value or 0.0 for trial in study.trials]
    return [max(values[: i + 1]) for i in range(len(values))]


def evaluations_saved(cold: list[float], warm: list[float]) -> int:
    """How many evaluations earlier the past reaches what the other search has in the end, within the luck of seeds."""
    wanted = cold[-1] - SEEDS_LUCK / 2

    def reached(trace: list[float]) -> int:
        return next((i for i, value in enumerate(trace, start=1) if value >= wanted), len(trace) + 1)

    return reached(cold) - reached(warm)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Tune a tiny GPT-2, with and without a search of half of it.")
    parser.add_argument("--max-evals", type=int, default=8, help="fine-tunes of the whole model (%(default)s)")
    parser.add_argument("--small-evals", type=int, default=10, help="fine-tunes of half of it (%(default)s)")
    parser.add_argument("--subset", type=int, default=800, help="training texts (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of tuning and training (%(default)s)")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/transfer"))
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Tune half of the model, then all of it twice, and compare."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported; all that is needed is here

    import transformers

    from llamatune_torch import Integer, Real, tune

    transformers.logging.set_verbosity_error()  # each trial would report its untrained head
    transformers.logging.disable_progress_bar()
    whole = load_task(str(TINY_GPT2), embedded_splits(args.subset), args.seed, args.output_dir)
    half = with_half_the_layers(whole, args.output_dir / "half")

    def search(task: Task, name: str, max_evals: int, **past: Any) -> Study:
        print(f"\n{name}, {count_parameters(task):,.0f} parameters")
        return tune(
            partial(trainer_factory, task),
            {
                "learning_rate": Real(1e-5, 3e-2, prior="log-uniform"),
                "batch_size": Integer(8, 64, prior="log-uniform"),
                "epochs": Integer(1, 4),
                "dropout": Real(0.0, 0.3),
                "warmup": Real(0.0, 0.3),
                "weight_decay": Real(0.0, 0.3),
            },
            metric="eval_accuracy",
            max_evals=max_evals,
            strategy="full",
            seed=args.seed,
            output_dir=str(args.output_dir / name),
            overwrite=True,
            context={"parameters": count_parameters(task)},
            **past,
        )

    small = search(half, "half", args.small_evals)
    cold = search(whole, "whole", args.max_evals)
    warm = search(whole, "whole after half", args.max_evals, past=[small.as_past("half")])
    traces = best_so_far(cold), best_so_far(warm)
    print("\nbest accuracy after   without   with the past")
    for i, (without, with_past) in enumerate(zip(*traces, strict=True), start=1):
        print(f"{i:12d} fine-tunes   {without:.3f}     {with_past:.3f}")
    saved = evaluations_saved(*traces)
    said = f"{saved} of {args.max_evals} fine-tunes are saved" if saved > 0 else "No fine-tune is saved"
    print(f"{said}: the past reaches what the search without has in the end, within half of the luck of a seed.")
    print("\n".join(warm.describe_past()))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example; the exit status is 2 when the user has to change something."""
    try:
        run(parse_arguments(argv))
    except UsageError as error:
        print(f"transfer.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
