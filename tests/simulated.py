"""Searches whose training is a formula: runs pause, fail or cannot pause, and several workers end in any order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from llamatune_torch import (
    BudgetSpentError,
    Curve,
    LlamaTune,
    Outcome,
    SearchSpace,
    SpaceExhaustedError,
    StillRunningError,
    Study,
    Trial,
    TrialState,
)
from llamatune_torch.decisions import Decision, Discard, Finish, Resume, Start, Wait, carried_out
from llamatune_torch.engine.decide import decide, find_strategy
from llamatune_torch.engine.strategies.strategy import Strategy
from llamatune_torch.settings import Settings
from llamatune_torch.study import Goal

SPACE: dict[str, Any] = {"x": (0.0, 1.0), "y": (0.0, 1.0)}

#: The value at a share of a run.
CurveOf = Callable[[dict[str, Any], float], float]


def plain(params: dict[str, Any], share: float) -> float:
    """Good runs are good from the beginning, and all get better."""
    return params["x"] + 0.1 * share


def crossing(params: dict[str, Any], share: float) -> float:
    """The best at the beginning are the worst in the end."""
    return params["x"] * (1 - 2 * share)


def search(max_evals: int = 6, strategy: Any = "screen", space: Any = None, **changes: Any) -> LlamaTune:
    """All points are from the Sobol sequence: no fits, so it costs nothing."""
    settings = {"n_initial": 10**6, "progress": False, "strategy": strategy, **changes}
    return LlamaTune(SPACE if space is None else space, None, max_evals, **settings)


class Played:
    """What came of a search: the true amount of training, in full runs, and what was decided, in order."""

    def __init__(self) -> None:
        self.trained = 0.0
        self.decided: list[Decision] = []
        self.most_running = 0


def play(
    tuner: LlamaTune,
    curve: CurveOf = plain,
    workers: int = 1,
    chance: Random | None = None,
    fate: Callable[[Trial], str] = lambda trial: "pauses",
    steps: int = 20,
    check: Callable[[LlamaTune], object] = lambda tuner: None,
) -> Played:
    """Plays a search to its end, as the loop does.

    Args:
        tuner: the search.
        curve: the value at a share of a run.
        workers: the trials that run at the same time; ``chance`` says which of them ends next.
        fate: of a trial that is started: "pauses", "fails", "breaks" (nan), or "trains on" to its end in one go.
        steps: evaluations in a full run.
        check: called before each decision.
    """
    played, running, chance = Played(), list[Trial](), chance or Random(0)
    for _ in range(10_000):
        while len(running) < workers and tuner.may_ask():
            check(tuner)
            before = tuner.study
            try:
                trial = tuner.ask()
            except StillRunningError:
                assert running, "it waits, but nothing runs"
                break
            except (BudgetSpentError, SpaceExhaustedError):
                break
            finally:
                played.decided += decisions_between(before, tuner.study)
            running.append(trial)
        played.most_running = max(played.most_running, len(running))
        if not running:
            return played
        played.trained += train(tuner, running.pop(chance.randrange(len(running))), curve, fate, steps)
    raise AssertionError("it never ends")


def train(tuner: LlamaTune, trial: Trial, curve: CurveOf, fate: Callable[[Trial], str], steps: int) -> float:
    """Trains a trial as far as it was started for; returns the share that it was trained."""
    how = fate(trial)
    target = 1.0 if how == "trains on" else trial.until
    done, value = trial.reached, math.nan
    for step in range(1, steps + 1):
        share = step / steps
        if share <= trial.reached + 1e-9:
            continue
        if how == "fails":
            tuner.tell(trial, Outcome.failure("error"))
            return done - trial.reached
        done, value = share, math.nan if how == "breaks" else curve(trial.params, share)
        tuner.report(trial, step, value, share)
        if share >= target - 1e-9:
            break
    if target < 1 and done < 1:
        tuner.pause(trial)
    else:
        tuner.tell(trial, value)
    return done - trial.reached


def decisions_between(before: Study, after: Study) -> list[Decision]:
    """What was decided, by what has changed; the laws of each decision are checked here."""
    decided: list[Decision] = []
    for trial in after.trials:
        if trial.number >= len(before.trials):
            decided.append(Start(trial.params, trial.origin, trial.until))
            continue
        old = before.trials[trial.number]
        if old == trial:
            continue
        assert old.state is TrialState.PAUSED, f"trial {old.number} was {old.state}"
        assert trial.reason
        if trial.state is TrialState.STOPPED:
            decided.append(Discard(trial.number, trial.reason))
        else:
            assert trial.state is TrialState.RUNNING
            assert trial.until > max(old.until, old.reached)
            decided.append(Resume(trial.number, trial.until, trial.reason))
    return decided


def run(
    number: int, values: Sequence[float], state: TrialState | None = None, until: float | None = None, **fields: Any
) -> Trial:
    """A run with a value at each tenth: it is paused there, has come to its end with ten of them, or is in a state."""
    n = len(values)
    reached = n / 10
    state = state or (TrialState.COMPLETE if n == 10 else TrialState.PAUSED)
    curve = Curve(tuple(range(1, n + 1)), tuple(values), tuple(i / 10 for i in range(1, n + 1)))
    point = {"x": ((number + 1) * 0.6180339887) % 1, "y": ((number + 1) * 0.7548776662) % 1}
    defaults: dict[str, Any] = {"origin": "sobol", "pauses": int(0 < n < 10), "reached": reached if n < 10 else 0.0}
    defaults |= {"params": point, "until": until if until is not None else (1.0 if n == 10 else max(reached, 0.1))}
    value = values[-1] if state is TrialState.COMPLETE else None
    return Trial(number, seed=number, state=state, value=value, curve=curve, **{**defaults, **fields})


def record(*trials: Trial, direction: str = "maximize", space: Any = None, **fields: Any) -> Study:
    return Study(SearchSpace(SPACE if space is None else space), Goal(direction), trials=trials, **fields)  # type: ignore[arg-type]


def next_of(
    study: Study, strategy: Strategy | str, left: float = 100.0, n: int = 1, max_evals: float = 100.0, **settings: Any
) -> list[Decision]:
    """The decisions for a record. Points are from the Sobol sequence, unless ``n_initial`` says otherwise."""
    made = Settings(**{"n_initial": 10**6, "strategy": strategy, **settings})
    return decide(study, made, find_strategy(made, max_evals, can_pause=True), n, left)


def carry(study: Study, decisions: Sequence[Decision]) -> Study:
    """The record once decisions have been carried out."""
    for decision in decisions:
        trial = carried_out(study, decision, 0, 0.0)
        study = study if trial is None else study.with_trial(trial)
    return study


def kinds(decisions: Sequence[Decision]) -> list[str]:
    """A word for each decision, with the number or the share."""
    words = []
    for decision in decisions:
        match decision:
            case Start():
                words.append(f"start {decision.until:.3g}")
            case Resume():
                words.append(f"resume {decision.number} {decision.until:.3g}")
            case Discard():
                words.append(f"discard {decision.number}")
            case Wait():
                words.append("wait")
            case Finish():
                words.append("finish")
    return words
