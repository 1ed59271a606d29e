"""Simulated fine-tunes with many parameters, of which six matter: for searches that must find out which.

    fine_tuning_30   what a recipe lists: rate, batch, optimizer, schedule, regularisation, data
    fine_tuning_60   the same, and a dropout and a rank for each of twelve layers, and weights of six sources of data

The learning rate has a ridge that moves with the batch size and the optimizer, and a cliff beyond it where runs
diverge. Epochs, warm-up and the decay of the rate over layers have optima of their own. Some of the others hardly
matter: on average they cost together about four standard deviations of a seed's luck. The rest do not matter at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from llamatune_torch.parameter_base import Parameter
from llamatune_torch.parameters import Categorical, Integer, Real
from llamatune_torch.problems import Problem
from llamatune_torch.space import Params, SearchSpace

BEST = 0.91  # accuracy
CHANCE = 0.25  # the accuracy of a run that has diverged
NOISE = 0.0015
BEST_RATE = {"adamw": 4e-5, "adafactor": 2e-4, "lion": 8e-6}  # with batches of 32
SLACK = 0.8  # decades above the best rate that still train, without warm-up


class Knob(NamedTuple):
    """A parameter of a simulated fine-tune, besides its learning rate.

    parameter   its range
    best        its best value
    cost        accuracy that is lost with any other choice; of a number, a whole range away from the best, where the
                loss grows as the square of the distance
    """

    parameter: Parameter
    best: float | str | bool
    cost: float = 0.0

    def lost(self, value: object) -> float:
        """The accuracy that ``value`` costs."""
        if isinstance(self.parameter, Categorical):
            return self.cost * (value != self.best)
        at, best = self.parameter.encode([value, self.best])
        return self.cost * float(at - best) ** 2


def log_real(low: float, high: float) -> Real:
    """A number that is searched in its logarithm."""
    return Real(low, high, prior="log-uniform")


MATTERING: Mapping[str, Knob] = {
    "batch_size": Knob(Integer(8, 256, prior="log-uniform"), 32, 0.01),
    "optimizer": Knob(Categorical(["adamw", "adafactor", "lion"]), "adamw", 0.008),
    "epochs": Knob(Integer(1, 8), 6, 0.05),
    "warmup": Knob(Real(0, 0.2), 0.06, 0.03),
    "layer_decay": Knob(Real(0.6, 1.0), 0.9, 0.06),
}

#: What a recipe lists besides: it hardly matters, or not at all.
RECIPE: Mapping[str, Knob] = {
    "weight_decay": Knob(log_real(1e-4, 0.3), 0.01, 0.003),
    "beta1": Knob(Real(0.8, 0.95), 0.9, 0.002),
    "beta2": Knob(Real(0.9, 0.9999), 0.98, 0.002),
    "epsilon": Knob(log_real(1e-10, 1e-5), 1e-8),
    "max_grad_norm": Knob(log_real(0.1, 10), 1.0, 0.003),
    "scheduler": Knob(Categorical(["linear", "cosine", "constant"]), "cosine", 0.001),
    "final_rate": Knob(Real(0, 0.3), 0.1, 0.001),
    "dropout": Knob(Real(0, 0.4), 0.1, 0.004),
    "attention_dropout": Knob(Real(0, 0.4), 0.05, 0.003),
    "classifier_dropout": Knob(Real(0, 0.4), 0.2),
    "label_smoothing": Knob(Real(0, 0.3), 0.1, 0.003),
    "embedding_noise": Knob(log_real(1e-3, 10), 1.0, 0.002),
    "mixup": Knob(Real(0, 1), 0.2, 0.002),
    "token_cutoff": Knob(Real(0, 0.3), 0.1),
    "average_decay": Knob(Real(0.9, 0.9999), 0.99),
    "frozen_layers": Knob(Integer(0, 8), 2, 0.003),
    "reinitialized_layers": Knob(Integer(0, 4), 1),
    "max_length": Knob(Integer(64, 512, prior="log-uniform"), 256, 0.003),
    "pooling": Knob(Categorical(["first", "mean", "last"]), "mean", 0.001),
    "truncation": Knob(Categorical(["head", "tail"]), "head"),
    "lowercase": Knob(Categorical([False, True]), False),
    "bucket_size": Knob(Integer(1, 1024, prior="log-uniform"), 64),
    "classifier_width": Knob(Integer(64, 2048, prior="log-uniform"), 512),
    "classifier_rate": Knob(log_real(0.1, 100), 5.0),
}

LAYERS: Mapping[str, Knob] = {
    **{f"dropout_{i}": Knob(Real(0, 0.4), 0.1, 0.001 if i % 3 == 0 else 0.0) for i in range(12)},
    **{f"rank_{i}": Knob(Integer(2, 64, prior="log-uniform"), 16, 0.001 if i % 3 == 1 else 0.0) for i in range(12)},
    **{f"source_{i}": Knob(Real(0, 1), 0.5, 0.001 if i < 2 else 0.0) for i in range(6)},
}


def fine_tune(name: str, knobs: Mapping[str, Knob]) -> Problem:
    """The simulated fine-tune with a learning rate and ``knobs``, those of ``MATTERING`` among them."""
    parameters = {key: knob.parameter for key, knob in knobs.items()}
    return Problem(
        name=name,
        space=SearchSpace({"learning_rate": log_real(1e-6, 3e-3), **parameters}),
        direction="maximize",
        optimum=BEST,  # each at its best, and the rate of its optimizer
        true_value=_accuracy_of(knobs),
        noise=NOISE,
    )


def _accuracy_of(knobs: Mapping[str, Knob]) -> Callable[[Params], float]:
    def accuracy(params: Params) -> float:
        best_rate = BEST_RATE[params["optimizer"]] * (params["batch_size"] / 32) ** 0.31
        off = math.log10(params["learning_rate"] / best_rate)
        # Warming up longer moves the cliff out.
        if off > SLACK + 1.5 * params["warmup"]:
            return CHANCE
        slope = 0.08 if off > 0 else 0.025
        return float(BEST - slope * off**2 - np.sum([knob.lost(params[key]) for key, knob in knobs.items()]))

    return accuracy


fine_tuning_30 = fine_tune("fine_tuning_30", {**MATTERING, **RECIPE})
fine_tuning_60 = fine_tune("fine_tuning_60", {**MATTERING, **RECIPE, **LAYERS})

ALL = (fine_tuning_30, fine_tuning_60)
