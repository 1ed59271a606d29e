"""``best`` and ``trials``: what a study has found."""

from __future__ import annotations

import json
import math
from argparse import Namespace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from llamatune_torch.cli.output import say, standard_output
from llamatune_torch.errors import SettingsError, TrialStateError
from llamatune_torch.parameter_base import compact
from llamatune_torch.storage.reader import Reader, Snapshot
from llamatune_torch.storage.serialization import to_strict
from llamatune_torch.study import Study
from llamatune_torch.tables import arguments, cells, show_value, trials_table
from llamatune_torch.trial import Trial

if TYPE_CHECKING:
    from llamatune_torch.engine.recommend import Recommendation
    from llamatune_torch.engine.relaxing import Relaxation


def best(options: Namespace) -> int:
    """The best parameters, for people, for programs, or for a training command."""
    if options.flags and not options.args:
        raise SettingsError("--flags is about the arguments of a training command: it needs --args")
    if options.relax and (options.args or options.json):
        raise SettingsError("--relax is for people to read: it does not go with --args or --json")
    stored = Reader(options.storage).look(options.name)
    study = stored.study
    known = _recommended(stored) if options.recommended or options.confidence else None
    trial, confirmed = study.best_trial if known is None else known.trial, study.confirmed()
    with standard_output(utf8=options.json or options.args) as file:
        if options.json:
            record = {"study": stored.name, "metric": study.metric, "direction": study.direction}
            found: dict[str, Any] = {"trial": trial.number, "value": trial.value, "params": trial.params}
            if confirmed is not None:
                found["confirmed"] = {**confirmed._asdict(), "trial": confirmed.trial.number}
            if study.goal.others:
                found["pareto"] = [_on_front(study, each) for each in study.pareto()]
            sure = _as_record(known) if known is not None and options.confidence else {}
            print(json.dumps(to_strict(record | found | sure)), file=file)
        elif options.args:
            print(arguments(trial.params, flags=options.flags), file=file)
        else:
            how = f"of {len(study.completed)}" if known is None else f"best on average, of {len(study.completed)}"
            value = confirmed or f"{trial.value:.6g}"
            say(f"{study.metric} = {value} in trial {trial.number} ({how}; {study.direction})")
            for name, value in trial.params.items():
                say(f"  {name} = {show_value(value)}")
            for key, note in trial.notes.items():
                say(f"  ({key}: {note})")
            for limit in study.constraints:
                say(f"  {limit.name} = {limit.value_in(trial.outcomes):.4g} ({limit})")
            for line in study.describe_front() if study.goal.others else []:
                say(line)
            if known is not None and options.confidence:
                say(str(known))
            for relaxation in _relaxations(stored) if options.relax else []:
                say(f"  {relaxation}")
    return 0


def _on_front(study: Study, trial: Trial) -> dict[str, Any]:
    others = {each.name: trial.outcomes[each.name] for each in study.goal.others}
    return {"trial": trial.number, study.metric: trial.value, **others, "params": trial.params}


def trials(options: Namespace) -> int:
    """A table of trials, or all that is known of one."""
    stored = Reader(options.storage).look(options.name)
    with standard_output():
        if options.number is not None:
            _print_trial(stored, options.number)
        else:
            _print_trials(stored.study, options)
    return 0


def _print_trials(study: Study, options: Namespace) -> None:
    ordered = study.by_value() if options.by_value else study.trials
    chosen = [trial for trial in ordered if options.state in (None, trial.state)]
    chosen = chosen[-options.last :] if options.last else chosen
    screen = console()
    if screen.is_terminal:
        screen.print(rich_table(cells(chosen, study.metric)))
    else:  # nothing to fold, and rich takes half a second for a thousand rows
        say(trials_table(chosen, study.metric))


def console() -> Console:
    """A terminal as it is; elsewhere a page that is wide enough for any table, so that lines stay whole."""
    plain: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}  # "[Errno 28]" is no style
    terminal = Console(**plain)
    return terminal if terminal.is_terminal else Console(**plain, width=1000)


def rich_table(rows: list[list[str]]) -> Table:
    """A header and rows of text as a table, the last column folded."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in rows[0][:-1]:
        table.add_column(column, justify="right")
    table.add_column(rows[0][-1], overflow="fold")
    for row in rows[1:]:
        table.add_row(*row)
    return table


def _recommended(stored: Snapshot) -> Recommendation:
    import llamatune_torch.runtime  # noqa: F401  # says so if torch cannot be loaded
    from llamatune_torch.engine.recommend import explain  # takes its time to load
    from llamatune_torch.settings import Settings

    return explain(stored.study, Settings(seed=stored.settings.get("seed", 0)))


def _as_record(known: Recommendation) -> dict[str, Any]:
    others = {"runner_up": known.runner_up, "default": known.default}
    numbers = {name: None if other is None else other.number for name, other in others.items()}
    return known._asdict() | numbers | {"trial": known.trial.number}


def _relaxations(stored: Snapshot) -> list[Relaxation]:
    import llamatune_torch.runtime  # noqa: F401  # says so if torch cannot be loaded
    from llamatune_torch.engine.relaxing import relaxations
    from llamatune_torch.settings import Settings

    return relaxations(stored.study, Settings(seed=stored.settings.get("seed", 0)))


def _print_trial(stored: Snapshot, number: int) -> None:
    count = len(stored.study.trials)
    if not 0 <= number < count:
        raise TrialStateError(f"trial {number} is unknown; study {stored.name!r} has {count} trials")
    trial = stored.study.trials[number]
    facts: dict[str, Any] = {
        "state": trial.state,
        stored.study.metric: trial.value,
        **{f"  {name}": _exact(value) for name, value in trial.params.items()},
        **trial.outcomes,
        "standard deviation": trial.std,
        "trained": f"{trial.reached:.0%} of its run at its last pause" if trial.pauses else None,
        "seconds": trial.cost,
        "started": _time(trial.started),
        "finished": _time(trial.finished),
        "seed": trial.seed,
        "origin": trial.origin,
        "worker": trial.worker,
        "retry of": trial.retry_of,
        "reason": trial.reason,
        "cause": trial.cause,
        **trial.notes,
    }
    say(f"trial {number} of study {stored.name!r}")
    for name, fact in facts.items():
        if fact is not None:
            say(f"{name}: {fact}")
    for step, value, progress in trial.curve:
        share = "" if progress is None else f"  ({progress:.0%})"
        say(f"  step {step:g}{share}: {value:.6g}")
    if trial.error:
        say(f"\n{trial.error}")


def _exact(value: Any) -> str:
    return compact(value) if isinstance(value, (list, dict)) else repr(value)


def _time(seconds: float | None) -> str | None:
    if seconds is None or not math.isfinite(seconds):
        return None
    return datetime.fromtimestamp(seconds, UTC).astimezone().isoformat(" ", "seconds")
