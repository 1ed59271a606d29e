"""Landscapes with a known optimum for ``regret.py``, next to those of ``llamatune_torch.problems``.

    ackley10              bumps all over, one deep funnel away from the middle
    levy50                50 parameters of which 12 matter
    rosenbrock_log        a curved valley in the logarithms of five parameters
    branin_noisy, hartmann6_noisy
                          noise of about a tenth of the spread among the best twentieth of the space
    mixed_large           3 reals on log scales, a plain one, 2 integers, 2 choices, all but one interacting
    fine_tuning_small     3 parameters: a loss with a narrow ridge, and a cliff to the loss of guessing
    fine_tuning_large     12 parameters, choices among them: which optimizer moves ridge and cliff
    lora_memory           a wall through batch x sequence length and LoRA rank; the optimum is near it, not on it

``ALL`` lists them.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from llamatune_torch import Categorical, Integer, Real, SearchSpace
from llamatune_torch.problems import Problem, branin, hartmann6
from llamatune_torch.space import Params

ACKLEY_CENTRE = np.array([-3.1, 6.4, 1.7, 7.9, -1.2, 4.8, -4.0, 0.6, 8.6, -2.3])


def _ackley(params: Params) -> float:
    z = np.array(list(params.values())) - ACKLEY_CENTRE
    hill = -20 * math.exp(-0.2 * math.sqrt(float(np.mean(z**2))))
    return hill - math.exp(float(np.mean(np.cos(2 * math.pi * z)))) + 20 + math.e


ackley10 = Problem(
    name="ackley10",
    space=SearchSpace({f"x{i}": Real(-5, 10) for i in range(10)}),
    direction="minimize",
    optimum=0.0,
    true_value=_ackley,
)

# Which of the 50 matter, and where they are best.
LEVY_CENTRE = dict(
    zip(
        [f"x{i}" for i in (2, 5, 11, 13, 19, 22, 24, 30, 37, 41, 44, 48)],
        [3.0, -5.5, 6.5, -2.0, 1.5, 7.0, -7.5, 4.0, -4.5, -1.0, 5.0, -6.0],
        strict=True,
    )
)


def _levy(params: Params) -> float:
    w = np.array([1 + (params[name] - centre) / 4 for name, centre in LEVY_CENTRE.items()])
    first = math.sin(math.pi * w[0]) ** 2
    middle = ((w[:-1] - 1) ** 2 * (1 + 10 * np.sin(math.pi * w[:-1] + 1) ** 2)).sum()
    last = (w[-1] - 1) ** 2 * (1 + math.sin(2 * math.pi * w[-1]) ** 2)
    return float(first + middle + last)


levy50 = Problem(
    name="levy50",
    space=SearchSpace({f"x{i}": Real(-10, 10) for i in range(50)}),
    direction="minimize",
    optimum=0.0,
    true_value=_levy,
)

ROSENBROCK_SCALES = {"a": 1e-4, "b": 1e-2, "c": 1.0, "d": 1e-3, "e": 10.0}


def _rosenbrock(params: Params) -> float:
    u = np.array([math.log10(params[name] / scale) for name, scale in ROSENBROCK_SCALES.items()])
    return float((100 * (u[1:] - u[:-1] ** 2) ** 2 + (1 - u[:-1]) ** 2).sum())


rosenbrock_log = Problem(
    name="rosenbrock_log",
    space=SearchSpace(
        {name: Real(1e-2 * scale, 1e2 * scale, prior="log-uniform") for name, scale in ROSENBROCK_SCALES.items()}
    ),
    direction="minimize",
    optimum=0.0,  # each at ten times its scale
    true_value=_rosenbrock,
)

# The best twentieth of the space spans 2.6 (Branin) and 2.3 (Hartmann-6) down to the optimum.
branin_noisy = replace(branin, name="branin_noisy", noise=0.3)
hartmann6_noisy = replace(hartmann6, name="hartmann6_noisy", noise=0.2)

_RATE = {"adamw": 6e-4, "lion": 1e-4, "muon": 1e-2}
_HANDICAP = {"adamw": 0.15, "lion": 0.25, "muon": 0.0}
_SCHEDULE = {"linear": 0.05, "cosine": 0.0, "constant": 0.3}


def _mixed_large(params: Params) -> float:
    layers = math.log2(params["layers"] / 12)
    # A deeper model wants a lower rate; another optimizer quite another one, with a weight decay to match.
    rate = math.log10(params["learning_rate"] / _RATE[params["optimizer"]]) + 0.4 * layers
    decay = math.log10(params["weight_decay"] / 0.05) + 0.5 * rate
    warmup = math.log10(params["warmup_steps"] / 300) - (0.5 if params["schedule"] == "constant" else 0.0)
    epsilon = math.log10(params["epsilon"] / 1e-7)
    dropout = (params["dropout"] - 0.1 - 0.03 * layers) / 0.2
    interplay = 0.2 * rate * warmup
    return float(
        rate**2 + 0.3 * layers**2 + 0.2 * decay**2 + 0.15 * warmup**2 + 0.02 * epsilon**2 + 0.4 * dropout**2
        + interplay + _HANDICAP[params["optimizer"]] + _SCHEDULE[params["schedule"]]
    )  # fmt: skip


mixed_large = Problem(
    name="mixed_large",
    space=SearchSpace(
        {
            "learning_rate": Real(1e-5, 1e-1, prior="log-uniform"),
            "weight_decay": Real(1e-4, 1.0, prior="log-uniform"),
            "epsilon": Real(1e-10, 1e-5, prior="log-uniform"),
            "dropout": Real(0, 0.5),
            "layers": Integer(4, 32),
            "warmup_steps": Integer(10, 3000, prior="log-uniform"),
            "optimizer": Categorical(["adamw", "lion", "muon"]),
            "schedule": Categorical(["linear", "cosine", "constant"]),
        }
    ),
    direction="minimize",
    optimum=0.0,  # muon, cosine, 12 layers, rate 1e-2, decay 0.05, 300 steps, epsilon 1e-7, dropout 0.1
    true_value=_mixed_large,
)

_GUESSING = 10.8  # the loss of a model that knows nothing, log(50,000)


def _fine_tuning_small(params: Params) -> float:
    off = math.log10(params["learning_rate"] / (1e-4 * (params["batch_size"] / 32) ** 0.31))
    if off > 0.8:
        return _GUESSING
    slope = 0.25 if off > 0 else 0.05
    return float(2.1 + slope * off**2 + 0.02 * math.log2(params["batch_size"] / 32) ** 2 + 0.03 / params["epochs"])


fine_tuning_small = Problem(
    name="fine_tuning_small",
    space=SearchSpace(
        {
            "learning_rate": Real(1e-6, 1e-2, prior="log-uniform"),
            "batch_size": Integer(8, 256, prior="log-uniform"),
            "epochs": Integer(1, 6),
        }
    ),
    direction="minimize",
    optimum=2.105,  # 1e-4, batches of 32, 6 epochs
    true_value=_fine_tuning_small,
    noise=0.003,
)

_BEST_RATE = {"adamw": 4e-5, "adafactor": 2e-4, "lion": 8e-6}
_SLACK = {"adamw": 0.9, "adafactor": 1.1, "lion": 0.6}  # decades above the best rate that still train
_BONUS = {"adamw": 0.0, "adafactor": -0.006, "lion": -0.002}
_SCHEDULER = {"linear": 0.0, "cosine": -0.001, "constant": -0.006}
_CHANCE = 0.25


def _fine_tuning_large(params: Params) -> float:
    optimizer, scheduler = params["optimizer"], params["scheduler"]
    rate = _BEST_RATE[optimizer] * (params["batch_size"] / 32) ** 0.31 * (0.5 if scheduler == "constant" else 1.0)
    off = math.log10(params["learning_rate"] / rate)
    # Clipping harder and warming up longer move the cliff out.
    if off > _SLACK[optimizer] + 1.5 * params["warmup"] - 0.1 * math.log10(params["max_grad_norm"]):
        return _CHANCE
    slope = 0.08 if off > 0 else 0.025
    return float(
        0.91
        + _BONUS[optimizer]
        + _SCHEDULER[scheduler]
        - slope * off**2
        - 0.006 * (6 - params["epochs"]) / 5
        - 0.1 * (params["layer_decay"] - 0.9) ** 2
        - 0.05 * (params["dropout"] - 0.1) ** 2
        - 0.03 * (params["attention_dropout"] - 0.05) ** 2
        - 0.02 * (params["label_smoothing"] - 0.1) ** 2
        - 0.1 * (params["warmup"] - 0.06) ** 2
        - 0.0005 * math.log10(params["weight_decay"] / 0.01) ** 2
        - 0.0005 * math.log10(params["max_grad_norm"]) ** 2
    )


fine_tuning_large = Problem(
    name="fine_tuning_large",
    space=SearchSpace(
        {
            "learning_rate": Real(1e-6, 3e-3, prior="log-uniform"),
            "batch_size": Integer(8, 256, prior="log-uniform"),
            "epochs": Integer(1, 6),
            "warmup": Real(0, 0.2),
            "weight_decay": Real(1e-4, 0.3, prior="log-uniform"),
            "dropout": Real(0, 0.4),
            "attention_dropout": Real(0, 0.4),
            "label_smoothing": Real(0, 0.3),
            "layer_decay": Real(0.6, 1.0),
            "max_grad_norm": Real(0.1, 10, prior="log-uniform"),
            "scheduler": Categorical(["linear", "cosine", "constant"]),
            "optimizer": Categorical(["adamw", "adafactor", "lion"]),
        }
    ),
    direction="maximize",
    optimum=0.91,
    true_value=_fine_tuning_large,
    noise=0.0015,
)

_GIGABYTES = 24


def _lora_memory(params: Params) -> float:
    tokens = params["batch_size"] * params["sequence_length"] / 1024
    gigabytes = 8 + (0.3 if params["checkpointing"] else 1.2) * tokens + 0.02 * params["rank"]
    if gigabytes > _GIGABYTES:
        raise MemoryError(f"out of memory: {gigabytes:.1f} GB needed, {_GIGABYTES} GB there")
    best_rate = 2e-4 * (params["batch_size"] / 16) ** 0.31 * (params["rank"] / 32) ** -0.2
    off = math.log10(params["learning_rate"] / best_rate)
    return float(
        0.7
        - (0.12 if off > 0 else 0.04) * off**2
        - 0.006 * math.log2(params["sequence_length"] / 2048) ** 2
        - 0.004 * math.log2(params["batch_size"] / 16) ** 2
        - 0.002 * math.log2(params["rank"] / 32) ** 2
    )


lora_memory = Problem(
    name="lora_memory",
    space=SearchSpace(
        {
            "learning_rate": Real(1e-5, 1e-2, prior="log-uniform"),
            "batch_size": Integer(1, 128, prior="log-uniform"),
            "sequence_length": Integer(256, 8192, prior="log-uniform"),
            "rank": Integer(2, 256, prior="log-uniform"),
            "checkpointing": Categorical([False, True]),
        }
    ),
    direction="maximize",
    optimum=0.7,  # 2e-4, 16 x 2,048 tokens, rank 32, with checkpointing: 18.2 GB of 24
    true_value=_lora_memory,
    noise=0.002,
)

ALL = (
    ackley10,
    levy50,
    rosenbrock_log,
    branin_noisy,
    hartmann6_noisy,
    mixed_large,
    fine_tuning_small,
    fine_tuning_large,
    lora_memory,
)
