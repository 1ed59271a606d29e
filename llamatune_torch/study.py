"""The record of a search: its space, its goal, its trials. Frozen; every change makes a new ``Study``."""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from llamatune_torch.confirmed import Confirmed, find_winner, runs_of
from llamatune_torch.constraints import Constraint, Estimate, read_constraints
from llamatune_torch.default import compare, describe_default, find_trial
from llamatune_torch.errors import NoCompletedTrialError, NoFeasibleTrialError, TrialStateError
from llamatune_torch.goal import UNCHANGED as UNCHANGED
from llamatune_torch.goal import End as End
from llamatune_torch.goal import Extension as Extension
from llamatune_torch.goal import Goal as Goal
from llamatune_torch.objectives import Objective, find_front
from llamatune_torch.past import PastStudy, PastTrial, teaches
from llamatune_torch.space import Params, SearchSpace
from llamatune_torch.tables import html_table, show_value, to_dataframe, to_row
from llamatune_torch.text import printable
from llamatune_torch.trial import Cause, Direction, Trial, TrialState

if TYPE_CHECKING:
    from pathlib import Path

    from llamatune_torch.tables import DataFrame


#: Trials that a notebook shows.
NUM_SHOWN = 20
#: A limit binds if the best trial lies within this share of it.
BINDING = 0.1


@dataclass(frozen=True)
class Study:
    """All trials of one search, in the order of their numbers (``trials[k].number == k``).

    A notebook shows its :meth:`summary` and its best trials.

    Args:
        space: where the search takes place.
        goal: the direction and the metric.
        initial_points: canonical parameters to try before any others; a point may leave some out.
        trials: what has been tried.
        extension: what the space has gained and lost. Trials are shown as they count in the space of now.
        estimates: beliefs about outcomes that are limited, from before anything was measured.
        end: why the search has ended before its budget, if it has; :attr:`ended` tells whether that still holds.
        context: sizes that tell this study from others of its kind, such as ``{"parameters": 1.2e9}``.
        past: snapshots of older studies, from which the search learns.
    """

    space: SearchSpace
    goal: Goal = field(default_factory=Goal)
    initial_points: tuple[Params, ...] = ()
    trials: tuple[Trial, ...] = ()
    extension: Extension = UNCHANGED
    estimates: tuple[Estimate, ...] = ()
    end: End | None = None
    context: Mapping[str, float] = field(default_factory=dict)
    past: tuple[PastStudy, ...] = ()

    @property
    def direction(self) -> Direction:
        return self.goal.direction

    @property
    def metric(self) -> str:
        """The name of the value; "value" until it is known."""
        return self.goal.metric or "value"

    @property
    def is_settled(self) -> bool:
        """True if the metric and the direction are known."""
        return self.goal.metric is not None

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
    def paused(self) -> list[Trial]:
        """Trials that have trained a share of their run, and may go on."""
        return self.in_state(TrialState.PAUSED)

    @property
    def can_pause(self) -> bool:
        """True if a run has paused, so that others may too."""
        return any(trial.pauses for trial in self.trials)

    @property
    def has_worked(self) -> bool:
        """True once a run has completed or paused, so that what is evaluated is known to work."""
        return any(trial.state is TrialState.COMPLETE or trial.pauses for trial in self.trials)

    @property
    def spent(self) -> float:
        """The number of full runs that count against a budget.

        A run counts for the share that it has trained, and while it runs for that which it was started for. A failed
        one counts for 1. LOST and added trials do not count; a retry counts once, with what it repeats. Until a first
        run has paused, any may turn out to be one that cannot, and each that runs counts for 1.
        """
        can_pause = self.can_pause
        return self._count(lambda trial: trial.share if can_pause else 1.0)

    @property
    def trained(self) -> float:
        """The number of full runs that have been trained: :attr:`spent`, but of what runs only what is behind it."""
        return self._count(lambda trial: trial.reached if trial.state is TrialState.RUNNING else trial.share)

    @property
    def saved(self) -> float:
        """The number of full runs that were not trained, because runs were stopped or are paused."""
        shares = (1 - trial.reached for trial in self.in_state(TrialState.PAUSED, TrialState.STOPPED))
        return math.fsum(shares)

    @property
    def cost(self) -> float:
        """Seconds of all runs that have ended or paused, also of those that were lost."""
        return math.fsum(_cost(trial) for trial in self.trials)

    def _count(self, share: Callable[[Trial], float]) -> float:
        shares: dict[int, float] = {}
        for trial in self.trials:
            if trial.origin != "added" and (trial.state is not TrialState.LOST or trial.cause is Cause.OUTSIDE):
                shares[trial.first] = max(shares.get(trial.first, 0.0), share(trial))
        return math.fsum(shares.values())

    def as_past(self, name: str = "unnamed", context: Mapping[str, float] | None = None) -> PastStudy:
        """A snapshot for a new study to learn from: the trials that have completed, or failed for a known cause.

        Args:
            name: for people.
            context: sizes, such as ``{"parameters": 1.2e9}``; by default the study's own.

        Raises:
            PastError: a size is no number above zero.

        Example:
            >>> small = load_study("sqlite:///small.db").as_past("124M", {"parameters": 124e6})
            >>> tune(trainer_factory, space, past=[small], context={"parameters": 1.2e9})
        """
        trials = tuple(PastTrial(trial.params, trial.value) for trial in self.trials if teaches(trial))
        return PastStudy(name, self.direction, trials, self.context if context is None else context)

    def estimates_of(self, outcome: str) -> list[Estimate]:
        """The estimates of one outcome."""
        return [estimate for estimate in self.estimates if estimate.name == outcome]

    @property
    def ended(self) -> str | None:
        """Why the search has ended; ``None`` if it has not, or if trials have started since."""
        return self.end.reason if self.end is not None and self.end.trials == len(self.trials) else None

    def better(self, value: float, than: float) -> bool:
        """True if ``value`` is strictly better than another in this study's direction."""
        return value > than if self.direction == "maximize" else value < than

    @property
    def constraints(self) -> tuple[Constraint, ...]:
        """The limits on outcomes, in the order of their names."""
        return self.goal.constraints

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The objectives, first the metric; mostly it is the only one."""
        return Objective(self.metric, self.direction, self.goal.reference), *self.goal.others

    def scores_of(self, trial: Trial) -> tuple[float, ...]:
        """The trial's objectives, with the sign with which larger is better; nan where it has not measured one."""
        value = math.nan if trial.value is None else trial.value
        others = (each.signed(trial.outcomes.get(each.name, math.nan)) for each in self.goal.others)
        return self.objectives[0].signed(value), *others

    def pareto(self) -> list[Trial]:
        """The feasible trials that no other one dominates, the best in the first objective first (``objectives.py``).

        Trials that have not measured all objectives are left out. Of one objective it is the best trial, or several
        that are equal; the list is empty while nothing feasible has completed.

        Example:
            >>> for trial in study.pareto():
            ...     print(trial.value, trial.outcomes["latency_ms"])
        """
        measured = [trial for trial in self.feasible if all(map(math.isfinite, self.scores_of(trial)))]
        front = [measured[i] for i in find_front([self.scores_of(trial) for trial in measured])]
        return sorted(front, key=self.scores_of, reverse=True)

    def best(self, **limits: Any) -> Trial:
        """The best feasible trial in the first objective among those that keep further ``limits``.

        Args:
            **limits: as in ``constraints``, on any outcome or on the metric: ``latency_ms="<= 20"``.

        Raises:
            ConstraintError: a limit is none.
            NoCompletedTrialError: nothing has completed; as NoFeasibleTrialError: none keeps them all.

        Example:
            >>> study.best(latency_ms="<= 20").params
            {'rank': 16}
        """
        if not limits:
            return self.best_trial
        read = read_constraints(limits)
        measured = {trial.number: {**trial.outcomes, self.metric: _value(trial)} for trial in self.feasible}
        kept = [t for t in self.feasible if all(limit.is_kept(measured[t.number]) for limit in read)]
        if self.feasible and not kept:
            raise NoFeasibleTrialError(
                f"none of {len(self.feasible)} feasible trials keeps {', '.join(map(str, read))}"
            )
        if not kept:
            return self.best_trial  # which says why there is none
        return max(kept, key=lambda trial: (self.objectives[0].signed(_value(trial)), -trial.number))

    def is_feasible(self, trial: Trial) -> bool:
        """True for a completed trial that keeps all constraints, as far as it has measured what they limit."""
        kept = all(limit.is_kept(trial.outcomes) for limit in self.constraints)
        return kept and trial.state is TrialState.COMPLETE

    def exceeds(self, trial: Trial) -> bool:
        """True if what a trial has measured so far is above the upper bound of a constraint: more cannot mend that."""
        return any(
            limit.upper is not None and limit.value_in(trial.outcomes) > limit.upper for limit in self.constraints
        )

    @property
    def feasible(self) -> list[Trial]:
        """The completed trials that keep all constraints; without constraints, all completed ones."""
        return [trial for trial in self.completed if self.is_feasible(trial)]

    @property
    def best_trial(self) -> Trial:
        """The feasible trial with the best value, the earliest among equals; once candidates are confirmed, the winner.

        Raises:
            NoCompletedTrialError: no trial has completed; the message counts the failures by reason. As
                NoFeasibleTrialError: none that has keeps the constraints; the message says how near they came.
        """
        confirmed = self.confirmed()
        best = None if confirmed is None else confirmed.trial
        for trial in self.feasible if best is None else []:
            if best is None or self.better(_value(trial), _value(best)):
                best = trial
        if best is None and self.completed:
            raise NoFeasibleTrialError(self._why_nothing_feasible())
        if best is None:
            raise NoCompletedTrialError(self._why_nothing_completed())
        return best

    @property
    def best_params(self) -> Params:
        """The parameters of :attr:`best_trial` as an evaluation gets them, a copy: with values in the place of labels.

        Raises:
            NoCompletedTrialError: no trial has completed.
            ParamsError: the study was read from a database, which does not have the value of a label;
                ``best_trial.params`` has the label.
        """
        return self.space.values_of(self.best_trial.params)

    @property
    def best_value(self) -> float:
        """The value of :attr:`best_trial`; of a confirmed winner, its mean on fresh seeds."""
        confirmed = self.confirmed()
        return _value(self.best_trial) if confirmed is None else confirmed.mean

    @property
    def default_trial(self) -> Trial | None:
        """The trial of the space's default, whoever asked for it; ``None`` if there is none."""
        return find_trial(self.trials, self.space.default)

    @property
    def default_value(self) -> float | None:
        """The value of the space's default on record; ``None`` without one, or if it breaks a constraint."""
        trial = self.default_trial
        return trial.value if trial is not None and self.is_feasible(trial) else None

    def confirmed(self) -> Confirmed | None:
        """The winner of the candidates that were trained again on fresh seeds; ``None`` while there is none."""
        return find_winner(self.trials, self.feasible, self.direction)

    def rows(self) -> list[dict[str, Any]]:
        """One row a trial, as plain values: parameters as ``params.<name>``, ``None`` where inactive."""
        return [to_row(trial, self.space.names) for trial in self.trials]

    def dataframe(self) -> DataFrame:
        """:meth:`rows` as a table, nan where a parameter was inactive; needs pandas (``report``)."""
        return to_dataframe(self.trials, self.space.names)

    def report(self, path: str | Path, *, name: str = "study", live: bool = False, settings: Any = None) -> None:
        """Writes all that the study tells as one page of HTML (``insight/report.py``); needs the extra ``report``.

        Args:
            path: the file, which is replaced.
            name: the study's name, for the title.
            live: whether the page loads itself again from time to time.
            settings: the knobs of the engine (``Settings``), for its seed and its device.

        Example:
            >>> study.report("report.html")
        """
        from llamatune_torch.insight.report import write_page

        write_page(self, path, name=name, live=live, settings=settings)

    def plot(self, kind: str, ax: Any = None, **options: Any) -> Any:
        """Draws one of the page's figures on matplotlib's axes (``insight/plots/plot.py``); needs ``report`` too.

        Args:
            kind: "history", "importance", "effects", "pairs", "parallel", "curves", "calibration" or "pareto".
            ax: the axes to draw on; by default new ones.
            **options: ``near=True`` for what matters near the best; ``insight``, if it is known already.

        Returns:
            The axes; of "effects" and "pairs", which have several, the figure.

        Example:
            >>> study.plot("importance").figure.savefig("importance.pdf")
        """
        from llamatune_torch.insight.plots.plot import plot

        return plot(self, kind, ax, **options)

    def summary(self) -> str:
        """The study in a few lines of plain text: counts, failures by reason, the best, its parameters."""
        counts = Counter(str(trial.state) for trial in self.trials)
        states = ", ".join(f"{counts[s]} {s}" for s in TrialState if counts[s]) or "none yet"
        trained = f", {self.trained:.3g} full runs trained and {self.saved:.3g} saved" if self.saved else ""
        lines = [f"{len(self.trials)} trials ({states}){trained}, {self.cost:.1f} s of evaluation"]
        lines += [f"  failed: {reason} ({n})" for reason, n in self.failures_by_reason().items()]
        default = [] if self.space.default is None else [self.compare_with_default()]
        if not self.completed:
            return printable("\n".join([*lines, "no trial has completed", *default]))
        if not self.feasible:
            return printable("\n".join([*lines, self._why_nothing_feasible(), *default]))
        best = self.best_trial
        value = self.confirmed() or f"{best.value:.6g}"
        lines.append(f"best {self.metric} ({self.direction}): {value} in trial {best.number}")
        lines += [f"  {name} = {show_value(value)}" for name, value in best.params.items()]
        lines += [f"  ({key}: {note})" for key, note in best.notes.items() if key != "why"]
        lines.append(self.compare_with_default())
        lines += [f"limit {self._how_kept(limit)}" for limit in self.constraints]
        lines += self.describe_front() if self.goal.others else []
        lines += self.describe_past()
        lines += [f"ended: {self.ended}"] if self.ended else []
        return printable("\n".join(lines))

    def compare_with_default(self) -> str:
        """Says in a line how the best compares with the space's default."""
        trial, best = self.default_trial, self.best_trial if self.feasible else None
        if trial is None or best is None or not self.is_feasible(trial):
            return describe_default(self.space.default, trial, self.metric, self.constraints)
        runs = runs_of(self.trials).get(repr(trial.params), {}).values() if self.confirmed() else ()
        again = [run.value for run in runs if run.value is not None]  # a mean is to be compared with a mean
        return compare(trial, best, self.best_value, again, self.metric, self.direction)

    def by_value(self) -> list[Trial]:
        """The completed trials, the best first, the earliest first among equals; those that break a limit come last."""
        ordered = sorted(self.completed, key=_value, reverse=self.direction == "maximize")
        return sorted(ordered, key=lambda trial: not self.is_feasible(trial))

    def binding(self) -> list[Constraint]:
        """The constraints within a tenth of whose bounds the best trial lies: to relax them may pay.

        Raises:
            NoCompletedTrialError: there is no best trial.
        """
        best, near = self.best_trial, []
        for limit in self.constraints:
            bounds = [bound for bound in (limit.lower, limit.upper) if bound is not None]
            if any(abs(limit.value_in(best.outcomes) - bound) <= BINDING * max(map(abs, bounds)) for bound in bounds):
                near.append(limit)
        return near

    def _repr_html_(self) -> str:
        """The study in a notebook: its summary, and the best trials, then the newest of the others."""
        others = [trial for trial in reversed(self.trials) if trial.state is not TrialState.COMPLETE]
        shown = [*self.by_value(), *others][:NUM_SHOWN]
        left_out = len(self.trials) - len(shown)
        more = f"<p>{left_out} more trials: study.dataframe() has all</p>" if left_out else ""
        table = html_table(shown, self.metric) if shown else ""
        return f"<pre>{html.escape(self.summary())}</pre>{table}{more}"

    def failures_by_reason(self) -> dict[str, int]:
        """The number of failed trials for each reason, the most frequent first."""
        return dict(Counter(trial.reason or "unknown" for trial in self.failed).most_common())

    def describe_front(self) -> list[str]:
        """The Pareto front, a trial a line."""
        front = self.pareto()
        lines = [f"Pareto front ({', '.join(map(str, self.objectives))}): {len(front)} trials"]
        for trial in front[:NUM_SHOWN]:
            others = ", ".join(f"{each.name} {trial.outcomes[each.name]:.6g}" for each in self.goal.others)
            lines.append(f"  {self.metric} {_value(trial):.6g}, {others} in trial {trial.number}")
        return lines + ([f"  and {len(front) - NUM_SHOWN} more: study.pareto()"] if len(front) > NUM_SHOWN else [])

    def describe_past(self) -> list[str]:
        """The past studies, a line each, and what the newest suggestion says of them, or of beliefs."""
        lines = [f"past study {past.describe(self.space)}" for past in self.past]
        said = [trial for trial in self.trials if "past" in trial.notes]
        if said:
            what = "past studies" if self.past else "belief"
            lines.append(f"{what} in trial {said[-1].number}: {said[-1].notes['past']}")
        return lines

    def _how_kept(self, limit: Constraint) -> str:
        kept = sum(limit.is_kept(trial.outcomes) for trial in self.completed)
        found = limit.value_in(self.best_trial.outcomes)
        binds = ", it binds" if limit in self.binding() else ""
        return f"{limit}: {found:.4g} in the best{binds}; kept by {kept} of {len(self.completed)}"

    def _why_nothing_feasible(self) -> str:
        near = []
        for limit in self.constraints:
            values = [(limit.excess(limit.value_in(trial.outcomes)), trial) for trial in self.completed]
            known = [(excess, trial) for excess, trial in values if not math.isnan(excess)]
            if not known:
                near.append(f"{limit} (never measured)")
                continue
            _, nearest = min(known, key=lambda pair: pair[0])
            value = limit.value_in(nearest.outcomes)
            near.append(f"{limit} (nearest: {value:.4g} in trial {nearest.number})")
        return f"none of {len(self.completed)} completed trials keeps the limits: {'; '.join(near)}"

    def _why_nothing_completed(self) -> str:
        if not self.failed:
            return f"no trial has completed yet ({len(self.trials)} started)"
        reasons = ", ".join(f"{reason}: {n}" for reason, n in self.failures_by_reason().items())
        first = self.failed[0]
        return (
            f"no trial has completed: {len(self.failed)} of {len(self.trials)} failed ({reasons}); "
            f"the first error, of trial {first.number}: {_last_line(first.error)}"
        )


def _value(trial: Trial) -> float:
    assert trial.value is not None, f"COMPLETE trial {trial.number} without a value"
    return trial.value


def _cost(trial: Trial) -> float:
    if trial.cost is not None or trial.state is not TrialState.LOST:
        return trial.cost or 0.0
    return max(0.0, (trial.finished or 0.0) - (trial.started or 0.0)) if trial.started and trial.finished else 0.0


def _last_line(text: str | None) -> str:
    lines = (text or "unknown").strip().splitlines()
    return lines[-1] if lines else "unknown"
