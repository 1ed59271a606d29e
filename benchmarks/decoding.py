"""How many tokens do good decoding parameters take? A race over prompts next to searches that ask them all.

    python benchmarks/decoding.py                                   # 20 searches a method, 200 without a difference
    python benchmarks/decoding.py --seeds 3 --studies 10

Answers are simulated: a score is how easy the prompt is, how good the setting is, and luck. True qualities are known.
Each method spends at most 20 times what all prompts take. ``tokens`` are what it had spent when the setting that it
would hand over came within a point (.01) of the best, in units of all prompts, the median; those that never do count as
``inf``. The methods:

    race        ``tune_decoding``, without held-out prompts
    full        the same engine, each setting with all prompts
    wilcoxon    Optuna's TPE and its ``WilcoxonPruner`` (p = 0.1), prompt by prompt
    random      random settings with all prompts

Then two questions to the verdict on held-out prompts: how often does it declare a winner where all settings are equal,
and how often where the best is two points better than the default?
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

from llamatune_torch import LlamaTune, Real, SearchSpace, TrialState, tune_decoding
from llamatune_torch.integrations.decoding.backends import Answers

NUM_PROMPTS, FULL_RUNS, NEAR = 200, 20, 0.01
EASE, LUCK = 0.2, 0.15  # standard deviations over prompts, and of an answer
SPACE = SearchSpace(
    {"temperature": Real(0.0, 2.0), "top_p": Real(0.3, 1.0), "penalty": Real(1.0, 1.5)},
    default={"temperature": 1.5, "top_p": 1.0, "penalty": 1.0},
)
Trace = list[tuple[int, float]]  # tokens so far, and the true quality of what would be handed over


def quality(params: Mapping[str, float], gain: float = 1.0) -> float:
    """The mean score of a setting over all prompts, without its luck; the best is 0.6."""
    off = (params["temperature"] - 0.7) ** 2 + (params["top_p"] - 0.9) ** 2 + 2 * (params["penalty"] - 1.1) ** 2
    return 0.6 - 0.3 * gain * off


class Task:
    """Prompts, and what answers them; it counts tokens, one an answer.

    Args:
        seed: of hardness and luck.
        gain: how much settings differ.
    """

    def __init__(self, seed: int, gain: float = 1.0, prompts: int = NUM_PROMPTS) -> None:
        generator = np.random.default_rng([seed, 1])
        self.ease = generator.normal(0, EASE, prompts)
        self.prompts = [str(i) for i in range(prompts)]
        self._luck, self._gain, self.tokens = np.random.default_rng([seed, 2]), gain, 0
        self.last: dict[str, int] = {}  # tokens when a setting answered last

    def scores(self, prompts: Sequence[str], params: Mapping[str, float]) -> list[float]:
        self.tokens += len(prompts)
        self.last[repr(dict(params))] = self.tokens
        mean = quality(params, self._gain)
        return [float(mean + self.ease[int(p)] + self._luck.normal(0, LUCK)) for p in prompts]

    def generate(self, prompts: Sequence[Any], params: Mapping[str, Any], seed: int) -> Answers:
        return Answers([str(score) for score in self.scores(prompts, params)], len(prompts))


def as_trace(task: Task, found: Sequence[tuple[Mapping[str, float], float]]) -> Trace:
    """The best by its mean so far, whenever a setting has answered all prompts."""
    trace, best = [], -math.inf
    for params, value in sorted(found, key=lambda each: task.last[repr(dict(each[0]))]):
        if value > best:
            best = value
            trace.append((task.last[repr(dict(params))], quality(params)))
    return trace


def race(seed: int) -> Trace:
    task, budget = Task(seed), FULL_RUNS * NUM_PROMPTS
    study = tune_decoding(
        task.generate, task.prompts, lambda prompt, text, _: float(text), SPACE,
        budget_tokens=budget, held_out=0.0, seed=seed, progress=False,
    )  # fmt: skip
    return as_trace(task, [(trial.params, trial.value or 0.0) for trial in study.in_state(TrialState.COMPLETE)])


def full(seed: int) -> Trace:
    task, tuner = Task(seed), LlamaTune(SPACE, max_evals=FULL_RUNS, seed=seed, progress=False)
    for _ in range(FULL_RUNS):
        trial = tuner.ask()
        tuner.tell(trial, float(np.mean(task.scores(task.prompts, trial.params))))
    return as_trace(task, [(trial.params, trial.value or 0.0) for trial in tuner.study.completed])


def at_random(seed: int) -> Trace:
    task, generator = Task(seed), np.random.default_rng([seed, 3])
    rows = SPACE.decode_all(generator.random((FULL_RUNS, SPACE.dim)))
    return as_trace(task, [(params, float(np.mean(task.scores(task.prompts, params)))) for params in rows])


def wilcoxon(seed: int) -> Trace:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    task, found = Task(seed), []
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=seed),
        pruner=optuna.pruners.WilcoxonPruner(p_threshold=0.1),
    )
    order = np.random.default_rng([seed, 4]).permutation(NUM_PROMPTS)

    def objective(trial: Any) -> float:
        params = {name: trial.suggest_float(name, p.low, p.high) for name, p in SPACE.parameters.items()}
        scores = []
        for i in order:
            scores += task.scores([task.prompts[i]], params)
            trial.report(scores[-1], int(i))
            if trial.should_prune():
                raise optuna.TrialPruned
        found.append((params, float(np.mean(scores))))
        return found[-1][1]

    study.enqueue_trial(dict(SPACE.default or {}))
    while task.tokens < FULL_RUNS * NUM_PROMPTS:
        study.optimize(objective, n_trials=1)
    return as_trace(task, found)


METHODS: Mapping[str, Callable[[int], Trace]] = {
    "race": race, "full": full, "wilcoxon": wilcoxon, "random": at_random
}  # fmt: skip


def tokens_to_near(trace: Trace, best: float = 0.6) -> float:
    """The tokens from which on what would be handed over stays within ``NEAR`` of the best, in full runs."""
    bad = [i for i, (_, value) in enumerate(trace) if value < best - NEAR]
    first = bad[-1] + 1 if bad else 0
    return trace[first][0] / NUM_PROMPTS if first < len(trace) else math.inf


def declared(seed: int, gain: float, held_out: float) -> bool:
    """Whether a search ends with a winner that is better than the default."""
    task = Task(seed, gain)
    study = tune_decoding(
        task.generate, task.prompts, lambda prompt, text, _: float(text), SPACE,
        budget_tokens=8 * NUM_PROMPTS, held_out=held_out, seed=seed, progress=False,
    )  # fmt: skip
    return str(study.ended).startswith("better")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20, help="searches of each method")
    parser.add_argument("--studies", type=int, default=200, help="searches that the verdict is asked about")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    print("| method | tokens, median | reached |\n|---|---|---|")
    for name in options.methods:
        tokens = [tokens_to_near(METHODS[name](seed)) for seed in range(options.seeds)]
        reached = sum(map(math.isfinite, tokens))
        print(f"| {name} | {median(tokens):.2f} | {reached} of {len(tokens)} |", flush=True)
    off = (0.6 - quality(SPACE.default or {})) / 0.02
    print("\n| true gain over the default | held out | a winner is declared |\n|---|---|---|")
    for gain, said in ((0.0, "none"), (1 / off, "2 points")):
        for held_out in (0.25, 0.5):
            found = [declared(1000 + seed, gain, held_out) for seed in range(options.studies)]
            print(f"| {said} | {held_out:.0%} | {sum(found)} of {len(found)} |", flush=True)


if __name__ == "__main__":
    main()
