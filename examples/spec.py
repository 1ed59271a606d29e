"""A search for the command line: a space, and a function that trains.

    llamatune run examples/spec.py
    llamatune best --args

The function trains a small network on two interleaved spirals and reports its accuracy as it goes. Where it would
return a ``transformers.Trainer``, it would be called ``trainer_factory``, and the rest would be the same.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from llamatune_torch import Categorical, Integer, Real, report

space = {
    "learning_rate": Real(1e-4, 1.0, prior="log-uniform"),
    "hidden": Integer(4, 64, prior="log-uniform"),
    "optimizer": Categorical(["SGD", "Adam"]),
    "weight_decay": Real(1e-5, 1e-1, prior="log-uniform", special=[0.0]),
}

# Arguments of `LlamaTune`; the options of `llamatune run` count before them.
search = {"max_evals": 20, "metric": "accuracy", "direction": "maximize"}

STEPS = 150


def evaluate(params: dict[str, Any]) -> float:
    torch.manual_seed(0)
    (X, y), (X_test, y_test) = spirals(200, seed=0), spirals(400, seed=1)
    hidden = params["hidden"]
    model = nn.Sequential(nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 1))
    optimizer = getattr(torch.optim, params["optimizer"])(
        model.parameters(), lr=params["learning_rate"], weight_decay=params["weight_decay"]
    )
    accuracy = 0.0
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(model(X).squeeze(-1), y).backward()
        optimizer.step()
        if step % 30 == 0:
            with torch.no_grad():
                accuracy = ((model(X_test).squeeze(-1) > 0) == (y_test > 0)).double().mean().item()
            report(step, accuracy, step / STEPS)
    return accuracy


def spirals(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """``n`` points in the plane, ``n x 2``, and which of two spirals each is on, 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n).remainder(2).float()
    turn = torch.rand(n, generator=generator).sqrt() * 2 * math.pi
    angle = turn + math.pi * y
    X = torch.stack([turn * angle.cos(), turn * angle.sin()], dim=-1) / math.pi
    return X + 0.08 * torch.randn(n, 2, generator=generator), y
