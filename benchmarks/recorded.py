"""Problems made of other people's recorded runs, for ``regret.py`` and ``fidelity.py``, where those are there.

    deberta, deberta_curves
                          1,024 fine-tunes of DeBERTa-base on MultiNLI (arXiv:2311.09480, CC BY-SA 4.0)
    steplaw, steplaw_large
                          pre-training over learning rate and batch size, at two sizes (arXiv:2503.04715)
    nmt_lora, nmt_curves  LoRA for translation, six base models x 27 settings (Zhang and Duh, AMTA 2024, MIT)

They are looked up at run time, in ``shared/data`` next to the checkout; none is part of this repository.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llamatune_torch import Categorical, Integer, Real, SearchSpace
from llamatune_torch.problems import NUM_STEPS, CurveProblem, Problem
from llamatune_torch.space import Params

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def deberta() -> Problem:
    space, rows = _deberta()
    accuracy = [row["curve"][-1][1] for row in rows]
    return Problem("deberta", space, "maximize", max(accuracy), recorded_value(space, rows, accuracy))


def deberta_curves() -> CurveProblem:
    """The same with learning curves: accuracy at ten equal steps of the run, between two evaluations on a line.

    Before its first evaluation a run is on the line from chance, of three classes, to there.
    """
    space, rows = _deberta()
    shares = np.arange(1, NUM_STEPS + 1) / NUM_STEPS
    curves = []
    for row in rows:
        steps, values = zip(*row["curve"], strict=True)
        curves.append(np.interp(shares, [0, *np.divide(steps, row["total_steps"])], [1 / 3, *values]).tolist())
    best = max(curve[-1] for curve in curves)
    run = recorded_run(space, rows)
    return CurveProblem("deberta_curves", space, "maximize", best, lambda params: curves[run(params)])


def _deberta() -> tuple[SearchSpace, list[dict[str, Any]]]:
    space = SearchSpace(
        {
            "learning_rate": Real(1e-6, 1e-3, prior="log-uniform"),
            "batch_size": Integer(16, 64),
            "num_epochs": Integer(1, 4),
            "warmup_proportion": Real(0, 0.6),
            "dropout": Real(0, 0.3),
        }
    )
    return space, _json_lines("deberta_base_mnli.jsonl")


def steplaw() -> Problem:
    """The median size of those recorded."""
    return _steplaw("steplaw", lambda sizes: sizes[len(sizes) // 2])


def steplaw_large() -> Problem:
    """The largest size with more than a hundred runs; unlike ``steplaw``, some of them diverged."""
    return _steplaw("steplaw_large", lambda sizes: sizes[-2])


def _steplaw(name: str, choose: Callable[[list[tuple[float, float]]], tuple[float, float]]) -> Problem:
    lines = (DATA / "steplaw_dense_part.csv").read_text().splitlines()
    table = [dict(zip(lines[0].split(","), map(float, line.split(",")), strict=True)) for line in lines[1:]]
    size = choose(sorted({(row["n_params"], row["n_tokens"]) for row in table}))
    rows = [
        {"lr": row["lr"], "batch_size": int(row["batch_size"]), "loss": row["loss"]}
        for row in table
        if (row["n_params"], row["n_tokens"]) == size
    ]
    rates, batches, losses = ([row[key] for row in rows] for key in ("lr", "batch_size", "loss"))
    space = SearchSpace(
        {
            "lr": Real(min(rates), max(rates), prior="log-uniform"),
            "batch_size": Integer(int(min(batches)), int(max(batches)), prior="log-uniform"),
        }
    )
    return Problem(name, space, "minimize", min(losses), recorded_value(space, rows, losses))


def nmt_lora() -> Problem:
    """A finite grid: which of six models, and how to train it."""
    space, rows = _nmt()
    bleu = [row["bleu_best"] for row in rows]
    return Problem("nmt_lora", space, "maximize", max(bleu), recorded_value(space, rows, bleu))


def nmt_curves() -> CurveProblem:
    """The same with learning curves: the best BLEU so far, at ten shares of a run that early stopping has ended."""
    space, rows = _nmt()
    curves = []
    for row in rows:
        best_so_far = np.maximum.accumulate(row["bleu_curve"])
        last = np.ceil(np.arange(1, NUM_STEPS + 1) / NUM_STEPS * len(best_so_far)).astype(int) - 1
        curves.append(best_so_far[last].tolist())
    best = max(curve[-1] for curve in curves)
    run = recorded_run(space, rows)
    return CurveProblem("nmt_curves", space, "maximize", best, lambda params: curves[run(params)])


def _nmt() -> tuple[SearchSpace, list[dict[str, Any]]]:
    rows = _json_lines("nmt_lora_fr_en.jsonl")

    def choices(name: str) -> list[Any]:
        return sorted({row[name] for row in rows})

    space = SearchSpace(
        {
            "base_model": Categorical(choices("base_model")),
            "lora_rank": Categorical(choices("lora_rank"), ordered=True),
            "batch_size": Categorical(choices("batch_size"), ordered=True),
            "learning_rate": Categorical(choices("learning_rate"), ordered=True),
        }
    )
    return space, rows


def _json_lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]


def recorded_value(space: SearchSpace, rows: list[Params], values: list[float]) -> Callable[[Params], float]:
    """The value of the recorded run that parameters are given."""
    run = recorded_run(space, rows)
    return lambda params: float(values[run(params)])


def recorded_run(space: SearchSpace, rows: list[Params]) -> Callable[[Params], int]:
    """The nearest recorded run that no other parameters have got yet.

    Each run is used once: training close to an earlier configuration means a new seed, not the same luck again.
    """
    runs = [space.validate({name: row[name] for name in space.names}) for row in rows]
    X = torch.from_numpy(space.encode_all(runs))
    assigned: dict[str, int] = {}

    def run(params: Params) -> int:
        key = repr(params)
        if key not in assigned:
            distance = torch.cdist(torch.from_numpy(space.encode(params))[None], X)[0]
            distance[list(assigned.values())] = torch.inf
            assigned[key] = int(distance.argmin())
        return assigned[key]

    return run


MAKERS: dict[str, Callable[[], Problem]] = {
    "deberta": deberta,
    "steplaw": steplaw,
    "steplaw_large": steplaw_large,
    "nmt_lora": nmt_lora,
}
CURVE_MAKERS: dict[str, Callable[[], CurveProblem]] = {"deberta_curves": deberta_curves, "nmt_curves": nmt_curves}
