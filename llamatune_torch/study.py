"""The record: what was tried, what came of it. Frozen; every change makes a new ``Study``.

A ``Trial`` keeps more than the objective from the first day, because results cannot be measured afterwards:
its learning curve, other outcomes (memory, latency), its cost in seconds, its seed, why it was suggested, and
the text of its error.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

from llamatune_torch.errors import NoCompletedTrialError, OutcomeError, TrialStateError
from llamatune_torch.space import Params, SearchSpace

if TYPE_CHECKING:
    import pandas as pd

Direction = Literal["maximize", "minimize"]
Origin = Literal["initial", "sobol", "surrogate", "added", "retry"]

#: The reason of a trial whose worker fell silent, without giving it back: LOST, or FAILED if that was once too often.
SILENT = "worker silent"

#: The reason that a finished trial shows in a stored study whose space has changed since, and which it does not fit.
OUTSIDE = "outside the space"


class TrialState(StrEnum):
    """Where a trial stands. A finished trial never changes; only ``Trial.is_open`` ones do."""

    RUNNING = "running"
    COMPLETE = "complete"  # has a value
    FAILED = "failed"  # these parameters do not work: out of memory, nan, an exception, one worker after the other
    LOST = "lost"  # never got to an end (Ctrl-C, a dead machine): says nothing about its parameters


@dataclass(frozen=True)
class Curve:
    """Intermediate values of one trial, in the order they were reported.

    ``steps`` counts what the caller counts (optimizer steps), ``progress`` is the share in [0, 1] of the full
    training run at that step, ``None`` where unknown. Curves of different trials compare by progress, not by
    steps: a run of 300 steps is further at step 300 than a run of 3,000.
    """

    steps: tuple[float, ...] = ()
    values: tuple[float, ...] = ()
    progress: tuple[float | None, ...] = ()

    def __len__(self) -> int:
        return len(self.steps)

    def reported(self, step: float, value: float, progress: float | None = None) -> Curve:
        """The curve with one more point; a second report at the last step replaces the first.

        Raises:
            OutcomeError: the step went backwards, or the share is not in [0, 1].
        """
        if self.steps and step < self.steps[-1]:
            raise OutcomeError(f"steps must not decrease, but got {step} after {self.steps[-1]}")
        if progress is not None and not 0 <= progress <= 1:
            raise OutcomeError(f"progress must lie in [0, 1], but got {progress}")
        kept = -1 if self.steps and step == self.steps[-1] else None
        return Curve(
            (*self.steps[:kept], float(step)),
            (*self.values[:kept], float(value)),
            (*self.progress[:kept], progress),
        )


@dataclass(frozen=True)
class Outcome:
    """What an evaluation found: a value, or an error, and whatever else was measured.

    Args:
        value: the objective; ``None`` or nan means that the trial failed.
        outcomes: other named measurements, such as ``{"memory_gb": 7.5}``.
        cost: seconds of training; measured by ``optimize`` if left out.
        curve: intermediate values; by default those reported while the trial ran.
        error: the text of what went wrong, if anything did.
        reason: that in a few words, the same for all failures of a kind: "out of memory", "nan".
        notes: remarks for people, such as where the value comes from.
    """

    value: float | None = None
    outcomes: Mapping[str, float] = field(default_factory=dict)
    cost: float | None = None
    curve: Curve | None = None
    error: str | None = None
    reason: str | None = None
    notes: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def failure(cls, reason: str, error: str | None = None, **rest: Any) -> Outcome:
        """The outcome of parameters that do not work, e.g. ``Outcome.failure("out of memory")``."""
        return cls(value=None, reason=reason, error=error or reason, **rest)


@dataclass(frozen=True)
class Trial:
    """One evaluation of one set of parameters.

    ``seed`` is the trial's own, derived from the study's seed and the number; ``cost`` is in seconds;
    ``started`` and ``finished`` are Unix times in seconds; ``origin`` says who chose the parameters. Of a stored
    study, ``worker`` names who runs it, and ``retry_of`` the first trial with these parameters, with that one's
    seed, if its worker fell silent.
    """

    number: int
    params: Params
    seed: int
    origin: Origin
    state: TrialState = TrialState.RUNNING
    value: float | None = None
    curve: Curve = Curve()
    outcomes: Mapping[str, float] = field(default_factory=dict)
    cost: float | None = None
    error: str | None = None
    reason: str | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    started: float | None = None
    finished: float | None = None
    worker: str | None = None
    retry_of: int | None = None

    @property
    def first(self) -> int:
        """The number of the first trial with these parameters, if its worker fell silent; otherwise its own."""
        return self.number if self.retry_of is None else self.retry_of

    @property
    def is_open(self) -> bool:
        """Whether its result may still come: it is running, or LOST or FAILED only because its worker fell silent.

        A machine that was suspended comes back with a result that took hours: that is still worth recording.
        """
        given_up = self.state in (TrialState.LOST, TrialState.FAILED) and self.reason == SILENT
        return self.state is TrialState.RUNNING or given_up


@dataclass(frozen=True)
class Study:
    """All trials of one search, in the order of their numbers (``trials[k].number == k``).

    Args:
        space: where the search takes place.
        direction: whether large values are good ("maximize") or small ones ("minimize").
        metric: the name of the value, for tables and messages.
        initial_points: canonical parameters to try before any others.
        trials: what has been tried.
    """

    space: SearchSpace
    direction: Direction = "maximize"
    metric: str = "value"
    initial_points: tuple[Params, ...] = ()
    trials: tuple[Trial, ...] = ()

    def with_trial(self, trial: Trial) -> Study:
        """The study with ``trial`` added at its end, or put in the place of its number.

        Raises:
            TrialStateError: the number is beyond the end, or its trial has finished: that never changes.
        """
        if trial.number == len(self.trials):
            return replace(self, trials=(*self.trials, trial))
        if not 0 <= trial.number < len(self.trials):
            raise TrialStateError(f"trial {trial.number} is unknown; this study has {len(self.trials)} trials")
        old = self.trials[trial.number]
        if not old.is_open:
            raise TrialStateError(f"trial {trial.number} has finished ({old.state}) and cannot change")
        trials = list(self.trials)
        trials[trial.number] = trial
        return replace(self, trials=tuple(trials))

    def in_state(self, *states: TrialState) -> list[Trial]:
        """The trials in any of the given states, oldest first."""
        return [trial for trial in self.trials if trial.state in states]

    @property
    def completed(self) -> list[Trial]:
        return self.in_state(TrialState.COMPLETE)

    @property
    def failed(self) -> list[Trial]:
        return self.in_state(TrialState.FAILED)

    @property
    def pending(self) -> list[Trial]:
        """Trials that were asked for and not told yet."""
        return self.in_state(TrialState.RUNNING)

    @property
    def num_counted(self) -> int:
        """Trials that count against a budget: neither LOST nor added. Retries count once, with what they repeat."""
        lost = TrialState.LOST
        return len(
            {
                trial.first
                for trial in self.trials
                if trial.origin != "added" and (trial.state is not lost or trial.reason == OUTSIDE)
            }
        )

    def better(self, value: float, than: float) -> bool:
        """Whether ``value`` is strictly better than another in this study's direction."""
        return value > than if self.direction == "maximize" else value < than

    @property
    def best_trial(self) -> Trial:
        """The completed trial with the best value, the earliest among equals.

        Raises:
            NoCompletedTrialError: no trial has completed; the message counts the failures by reason.
        """
        best: Trial | None = None
        for trial in self.completed:
            if best is None or self.better(_value(trial), _value(best)):
                best = trial
        if best is None:
            raise NoCompletedTrialError(self._why_nothing_completed())
        return best

    @property
    def best_params(self) -> Params:
        """The parameters of :attr:`best_trial`, as a fresh dict."""
        return dict(self.best_trial.params)

    @property
    def best_value(self) -> float:
        """The value of :attr:`best_trial`."""
        return _value(self.best_trial)

    def rows(self) -> list[dict[str, Any]]:
        """One row a trial, as plain values: parameters as ``params.<name>``, ``None`` where inactive."""
        return [_row(trial, self.space.names, None) for trial in self.trials]

    def dataframe(self) -> pd.DataFrame:
        """:meth:`rows` as a table, nan where a parameter was inactive; needs pandas (``report``)."""
        try:
            import pandas as pd
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "Study.dataframe() needs pandas: pip install 'llamatune-torch[report]'"
            ) from error
        return pd.DataFrame([_row(trial, self.space.names, math.nan) for trial in self.trials])

    def summary(self) -> str:
        """The study in a few lines of plain text: counts, failures by reason, the best, its parameters."""
        counts = Counter(str(trial.state) for trial in self.trials)
        cost = sum(trial.cost or 0.0 for trial in self.trials)
        states = ", ".join(f"{counts[s]} {s}" for s in TrialState if counts[s]) or "none yet"
        lines = [f"{len(self.trials)} trials ({states}), {cost:.1f} s of evaluation"]
        lines += [f"  failed: {reason} ({n})" for reason, n in self.failures_by_reason().items()]
        if not self.completed:
            return "\n".join([*lines, "no trial has completed"])
        best = self.best_trial
        lines.append(f"best {self.metric} ({self.direction}): {best.value:.6g} in trial {best.number}")
        lines += [f"  {name} = {show_value(value)}" for name, value in best.params.items()]
        lines += [f"  ({key}: {note})" for key, note in best.notes.items()]
        return "\n".join(lines)

    def failures_by_reason(self) -> dict[str, int]:
        """How many trials failed for each reason, the most frequent first."""
        return dict(Counter(trial.reason or "unknown" for trial in self.failed).most_common())

    def _why_nothing_completed(self) -> str:
        if not self.failed:
            return f"no trial has completed yet ({len(self.trials)} started)"
        reasons = ", ".join(f"{reason}: {n}" for reason, n in self.failures_by_reason().items())
        first = self.failed[0]
        return (
            f"no trial has completed: {len(self.failed)} of {len(self.trials)} failed ({reasons}); "
            f"the first error, of trial {first.number}: {_last_line(first.error)}"
        )


def show_value(value: Any) -> str:
    """A parameter's value for people: floats to four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else repr(value)


def show_params(params: Mapping[str, Any]) -> str:
    """Parameters on one line: ``{'learning_rate': 2.8e-05, 'batch_size': 16}``."""
    return "{" + ", ".join(f"{name!r}: {show_value(v)}" for name, v in params.items()) + "}"


def trials_table(trials: Sequence[Trial]) -> str:
    """The trials as aligned plain text, one a line; a parameter that was inactive shows as "-"."""
    if not trials:
        return "no trials"
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    rows = [["trial", "value", *names, "seconds", "state"]]
    for trial in trials:
        value = "-" if trial.value is None else f"{trial.value:.4f}"
        cost = "-" if trial.cost is None else f"{trial.cost:.1f}"
        state = f"{trial.state}: {trial.reason}" if trial.reason else str(trial.state)
        shown = [show_value(trial.params[name]) if name in trial.params else "-" for name in names]
        rows.append([str(trial.number), value, *shown, cost, state])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row[:-1], widths, strict=False)) + f"  {row[-1]}"
        for row in rows
    ]
    return "\n".join(lines)


def _value(trial: Trial) -> float:
    assert trial.value is not None, f"COMPLETE trial {trial.number} without a value"
    return trial.value


def _row(trial: Trial, names: Sequence[str], missing: float | None) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": str(trial.state),
        "value": missing if trial.value is None else trial.value,
        **{f"params.{name}": trial.params.get(name, missing) for name in names},
        **{f"outcomes.{name}": value for name, value in trial.outcomes.items()},
        "cost": missing if trial.cost is None else trial.cost,
        "origin": trial.origin,
        "seed": trial.seed,
        "reason": trial.reason,
    }


def _last_line(text: str | None) -> str:
    lines = (text or "unknown").strip().splitlines()
    return lines[-1] if lines else "unknown"
