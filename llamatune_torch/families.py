"""Families of simulated tunes: the same parameters, but other models, data or methods, with which the optimum moves.

    pretraining   the best learning rate and batch follow scaling laws in parameters and tokens; high rates diverge
    classifying   the same model on other data, whose size nobody tells
    adapting      full fine-tuning or LoRA, with a rate ten times as high; which is better depends on the model

They are for searches that learn from past ones (``benchmarks/transfer.py``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from llamatune_torch.parameters import Categorical, Integer, Real
from llamatune_torch.problems import Problem
from llamatune_torch.space import Params, SearchSpace

CHANCE = 0.33  # the accuracy of a run that has diverged


@dataclass(frozen=True)
class Relative(Problem):
    """One of a family of problems: the same parameters, another model or other data.

    Args:
        context: its sizes, such as ``{"parameters": 1.2e9}``; empty where nobody knows them.
        at: the best parameters.
    """

    context: Mapping[str, float] = field(default_factory=dict)
    at: Params = field(default_factory=dict)


def _diverging(params: Params, off: float, edge: float) -> None:
    if off > edge:
        raise FloatingPointError(f"diverged: the learning rate is 10^{off:.2f} times the best")


def _pretraining(i: int) -> Relative:
    # The best rate falls with the parameters, the best batch grows with the tokens, as in scaling laws.
    sizes, tokens = 6e7 * 2.2 ** np.arange(6), 2e9 * 2.0 ** np.array([0, 3, 1, 4, 2, 5])
    parameters, data = float(sizes[i]), float(tokens[i])
    jitter = np.random.default_rng([7, i]).normal(0, 0.08, 2)
    best_rate = 1.8 * parameters**-0.71 * data**0.31 * 10 ** jitter[0]
    best_batch = 0.58 * data**0.57 / 2048 * 10 ** jitter[1]

    def loss(params: Params) -> float:
        batch = math.log10(params["batch_size"] / best_batch)
        rate = math.log10(params["learning_rate"] / best_rate) - 0.25 * batch
        _diverging(params, rate, 0.8)
        slope = 0.5 if rate > 0 else 0.2
        return float(2.5 + slope * rate**2 + 0.1 * batch**2 + 0.05 * (math.log10(params["weight_decay"]) + 1) ** 2
                     + 0.3 * (params["warmup"] - 0.05) ** 2)  # fmt: skip

    space = SearchSpace(
        {
            "learning_rate": Real(1e-5, 1e-1, prior="log-uniform"),
            "batch_size": Integer(16, 4096, prior="log-uniform"),
            "weight_decay": Real(1e-3, 1, prior="log-uniform"),
            "warmup": Real(0, 0.3),
        }
    )
    context = {"parameters": parameters, "tokens": data}
    at = {"learning_rate": best_rate, "batch_size": round(best_batch), "weight_decay": 0.1, "warmup": 0.05}
    return Relative(f"pretraining_{i}", space, "minimize", 2.5, loss, 0.002, context, at)


def _classifying(i: int) -> Relative:
    # The same model on other data: the best rate scatters, small data want more epochs and more dropout.
    generator = np.random.default_rng([8, i])
    examples = float(2000 * 3.0 ** generator.uniform(0, 4))
    best_rate = 2.5e-5 * 10 ** generator.normal(0, 0.2)
    best_epochs, best_dropout = (5 - math.log10(examples / 1000), 0.25 - 0.08 * math.log10(examples / 1000))
    top = generator.uniform(0.75, 0.95)

    def accuracy(params: Params) -> float:
        rate = math.log10(params["learning_rate"] / best_rate) - 0.31 * math.log10(params["batch_size"] / 16)
        if rate > 0.9:
            return CHANCE
        slope = 0.06 if rate > 0 else 0.025
        return float(top - slope * rate**2 - 0.003 * (params["epochs"] - best_epochs) ** 2
                     - 0.2 * (params["dropout"] - best_dropout) ** 2 - 0.1 * (params["warmup"] - 0.1) ** 2)  # fmt: skip

    space = SearchSpace(
        {
            "learning_rate": Real(1e-6, 1e-3, prior="log-uniform"),
            "batch_size": Integer(8, 128, prior="log-uniform"),
            "epochs": Real(1, 6),
            "dropout": Real(0, 0.4),
            "warmup": Real(0, 0.4),
        }
    )
    at = {"learning_rate": best_rate, "batch_size": 16, "epochs": best_epochs, "dropout": best_dropout, "warmup": 0.1}
    return Relative(f"classifying_{i}", space, "maximize", top, accuracy, 0.001, at=at)


def _adapting(i: int) -> Relative:
    # Full fine-tuning or LoRA, whose rate is ten times as high; which of them is better depends on the model.
    generator = np.random.default_rng([9, i])
    parameters = float(1.2e8 * 2.5**i)
    best_rate = 2e-5 * (parameters / 1e9) ** -0.25 * 10 ** generator.normal(0, 0.1)
    best_rank = 16 * 2 ** generator.normal(0, 0.7)
    handicap = {"full": max(0.0, 0.03 * (i - 2)), "lora": max(0.0, 0.03 * (2 - i))}

    def loss(params: Params) -> float:
        method = params["method"]
        rate = math.log10(params["learning_rate"] / (best_rate * (10 if method == "lora" else 1)))
        _diverging(params, rate, 1.0)
        value = 1.0 + (0.3 if rate > 0 else 0.12) * rate**2 + handicap[method]
        value += 0.02 * math.log2(params["batch_size"] / 32) ** 2 / 4
        return float(value + (0.01 * math.log2(params["rank"] / best_rank) ** 2 if method == "lora" else 0.0))

    space = SearchSpace(
        {
            "method": Categorical(["full", "lora"]),
            "learning_rate": Real(1e-6, 1e-2, prior="log-uniform"),
            "batch_size": Integer(8, 256, prior="log-uniform"),
            "rank": Integer(2, 128, prior="log-uniform", when={"method": "lora"}),
        }
    )
    at = {"method": "full" if i <= 2 else "lora", "learning_rate": best_rate * (1 if i <= 2 else 10), "batch_size": 32}
    at |= {} if i <= 2 else {"rank": round(best_rank)}
    return Relative(f"adapting_{i}", space, "minimize", 1.0, loss, 0.002, {"parameters": parameters}, at)


#: Families of tunes whose optimum moves with size, data and method, for searches that learn from past ones.
FAMILIES: Mapping[str, tuple[Relative, ...]] = {
    "pretraining": tuple(_pretraining(i) for i in range(6)),
    "classifying": tuple(_classifying(i) for i in range(6)),
    "adapting": tuple(_adapting(i) for i in range(6)),
}
