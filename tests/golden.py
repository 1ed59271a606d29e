"""The golden trace: what the engine suggested on three problems, one suggestion after the other.

Each suggestion is computed again from the recorded history before it, so that a difference in the last digits does not
grow from one to the next. ``golden.json`` holds the trace of this commit, made with one thread.

    python tests/golden.py --renew            after a change of the engine, in the same commit
    python tests/golden.py --against COMMIT   this working tree and COMMIT on this machine, to 1e-9
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# Public names, and a path that is as old as the engine: the script also runs on earlier commits.
from llamatune_torch import Categorical, Integer, LlamaTune, Real, SearchSpace, Settings, Study, Trial, TrialState
from llamatune_torch.engine.suggest import suggest

HERE = Path(__file__).resolve().parent
GOLDEN = HERE / "golden.json"
NUM_SUGGESTIONS = 10  # of each problem, by the surrogate

Params = dict[str, Any]


@dataclass(frozen=True)
class Problem:
    """A space, an evaluation that returns ``None`` for a failure, and how many points are asked for at a time."""

    space: SearchSpace
    evaluate: Callable[[Params], float | None]
    settings: Settings
    q: int = 1


def fine_tune(params: Params) -> float | None:
    """A ridge of learning rates with a cliff: too high a rate diverges, too large a batch does not fit."""
    if params["batch"] > 40 or params["lr"] > 6e-4:
        return None
    rate = math.log10(params["lr"]) + 4 + 0.2 * (params["opt"] == "sgd")
    size = {"small": 0.0, "base": 0.05, "large": 0.04}[params["size"]]
    return 0.8 - 0.3 * rate**2 - 0.02 * abs(math.log2(params["batch"]) - 4) + size - 0.05 * (params["opt"] is None)


def adapters(params: Params) -> float:
    """Full training or adapters, each with parameters of its own; no dropout is a jump."""
    value = 0.5 - 0.1 * (math.log10(params["lr"]) + 3.5) ** 2
    if params["method"] == "lora":
        value += 0.1 - 0.03 * (math.log2(params["rank"]) - 4) ** 2
        value += 0.04 if params["dropout"] == 0 else -((params["dropout"] - 0.1) ** 2)
    return value


def hill(params: Params) -> float:
    """A loss with one minimum."""
    return (params["x"] - 0.3) ** 2 + 2 * (params["y"] + 0.4) ** 2 + 0.5 * math.sin(3 * params["x"] * params["z"])


def settings(seed: int) -> Settings:
    return Settings(seed=seed, n_initial=6, num_restarts=4, num_screened=256)


PROBLEMS = {
    "mixed with failures": Problem(
        SearchSpace(
            {
                "lr": Real(1e-5, 1e-3, prior="log-uniform"),
                "batch": Integer(1, 64, prior="log-uniform"),
                "opt": ["adamw", "sgd", None],
                "size": Categorical(["small", "base", "large"], ordered=True),
            }
        ),
        fine_tune,
        settings(seed=1),
    ),
    "conditional with special values": Problem(
        SearchSpace(
            {
                "lr": Real(1e-5, 1e-2, prior="log-uniform"),
                "method": ["full", "lora"],
                "rank": Integer(1, 64, prior="log-uniform", when={"method": "lora"}),
                "dropout": Real(0.01, 0.5, special=[0.0], when={"method": "lora"}),
            }
        ),
        adapters,
        settings(seed=2),
    ),
    "four at a time": Problem(
        SearchSpace({"x": Real(-1, 1), "y": Real(-1, 1), "z": Real(0, 2)}), hill, settings(seed=3), q=4
    ),
}


def empty(problem: Problem) -> Study:
    return LlamaTune(problem.space, direction="minimize" if problem.evaluate is hill else "maximize").study


def finished(study: Study, params: Params, origin: Any, value: float | None) -> Study:
    """The study with one more trial, which failed if it has no value."""
    state = TrialState.FAILED if value is None else TrialState.COMPLETE
    reason = "out of memory" if value is None else None
    number = len(study.trials)
    return study.with_trial(Trial(number, params, number, origin, state=state, value=value, reason=reason))


def play(problem: Problem) -> list[dict[str, Any]]:
    """The trials of a search from its start: parameters, who chose them, value."""
    study, chosen = empty(problem), 0
    while chosen < NUM_SUGGESTIONS:
        for params, origin, _ in suggest(study, problem.settings, min(problem.q, NUM_SUGGESTIONS - chosen)):
            study = finished(study, params, origin, problem.evaluate(params))
            chosen += origin == "surrogate"
    return [{"params": t.params, "origin": t.origin, "value": t.value} for t in study.trials]


def replay(problem: Problem, trials: list[dict[str, Any]]) -> Iterator[tuple[Params, Params]]:
    """The recorded and the present choice of each suggestion, given the recorded trials before it."""
    study, next_ = empty(problem), 0
    while next_ < len(trials):
        left = NUM_SUGGESTIONS - sum(trial["origin"] == "surrogate" for trial in trials[:next_])
        for params, origin, _ in suggest(study, problem.settings, min(problem.q, left)):
            trial = trials[next_]
            assert origin == trial["origin"], f"suggestion {next_} is from {origin}, and was from {trial['origin']}"
            yield trial["params"], params
            study = finished(study, trial["params"], origin, trial["value"])
            next_ += 1


def differences(space: SearchSpace, recorded: Params, chosen: Params, tolerance: float) -> list[str]:
    """What differs, a line each: choices and integers at all, reals by more than a share of their range."""
    if list(recorded) != list(chosen):
        return [f"parameters: {list(recorded)}, now {list(chosen)}"]
    return [
        f"{name}: {value!r}, now {chosen[name]!r}"
        for name, value in recorded.items()
        if not _same(space[name], value, chosen[name], tolerance)
    ]


def _same(parameter: Any, a: Any, b: Any, tolerance: float) -> bool:
    if not isinstance(parameter, Real) or a in parameter.special or b in parameter.special:
        return repr(a) == repr(b)
    scale = math.log if parameter.prior == "log-uniform" else float
    return abs(scale(a) - scale(b)) <= tolerance * (scale(parameter.high) - scale(parameter.low))


def compare(golden: dict[str, list[dict[str, Any]]], tolerance: float) -> list[str]:
    """What this engine chooses otherwise than the golden trace."""
    lines = []
    for name, problem in PROBLEMS.items():
        for i, (recorded, chosen) in enumerate(replay(problem, golden[name])):
            found = differences(problem.space, recorded, chosen, tolerance)
            lines += [f"{name}, suggestion {i}: {line}" for line in found]
    return lines


def trace_of(commit: str) -> dict[str, Any]:
    """What the engine of another commit plays here and now."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", folder, commit], cwd=HERE, check=True)
        try:
            run = subprocess.run(
                [sys.executable, str(HERE / "golden.py")],
                env={**os.environ, "PYTHONPATH": folder},
                capture_output=True,
                text=True,
                check=True,
            )
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", folder], cwd=HERE, check=True)
    trace: dict[str, Any] = json.loads(run.stdout)
    return trace


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--renew", action="store_true")
    arguments.add_argument("--against", metavar="COMMIT")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    if options.against is not None:
        lines = compare(trace_of(options.against), 1e-9)
        print("\n".join(lines) or f"the same as {options.against}")
        return 1 if lines else 0
    text = json.dumps({name: play(problem) for name, problem in PROBLEMS.items()}, indent=1)
    if options.renew:
        GOLDEN.write_text(text + "\n")
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
