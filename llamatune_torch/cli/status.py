"""``status``: the progress of a study, its workers, and the time that is left."""

from __future__ import annotations

import json
import math
import statistics
import time
from argparse import Namespace
from collections import Counter
from typing import Any, NamedTuple

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from llamatune_torch.cli.output import standard_output
from llamatune_torch.cli.results import console
from llamatune_torch.storage.reader import Reader, Snapshot
from llamatune_torch.storage.serialization import to_strict
from llamatune_torch.tables import show_params
from llamatune_torch.text import duration, printable
from llamatune_torch.trial import Trial, TrialState

#: Workers give a sign of life every ten seconds at least (unless ``grace`` is very long): after three it shows.
QUIET = 30.0


def status(options: Namespace) -> int:
    """Shows one look; on a terminal a live table, until the study is finished or Ctrl-C."""
    reader = Reader(options.storage)
    stored = reader.look(options.name)
    if options.json:
        with standard_output(utf8=True) as file:
            print(json.dumps(to_strict(record(stored))), file=file)
        return 0
    screen = console()
    if options.once or not screen.is_terminal:
        with standard_output():
            screen.print(shown(stored, reader.display_url))
        return 0
    with standard_output():
        _live(reader, stored, screen, options.every)
    return 0


def _live(reader: Reader, stored: Snapshot, screen: Console, every: float) -> None:
    with Live(console=screen, auto_refresh=False) as live:
        while True:
            live.update(shown(stored, reader.display_url), refresh=True)
            if state_of(stored) == "finished":
                return
            time.sleep(every)
            stored = reader.look(stored.name)


def state_of(stored: Snapshot) -> str:
    """A word for it: "finished", "running", "silent" (no worker gives a sign of life) or "stopped"."""
    if stored.study.pending:
        alive = [worker for worker in stored.workers.values() if worker.silent_for <= QUIET]
        return "running" if alive else "silent"
    total = stored.settings.get("max_evals")
    if stored.study.ended:
        return "finished"
    if total is None or stored.study.paused or total - stored.study.spent >= 1:
        return "stopped"
    return "finished"  # less than one full run is left


class Remaining(NamedTuple):
    """The work that is left: full runs that have not begun, and seconds until the end (``None`` if unknown)."""

    trials: int
    seconds: float | None


def remaining(stored: Snapshot) -> Remaining:
    """The time that is left if each trial takes the median of the finished ones, and as many run at a time as now."""
    study = stored.study
    trials = 0 if study.ended else max(0, math.ceil(stored.settings.get("max_evals", 0) - study.spent))
    own = [trial for trial in study.completed if trial.origin != "added"]
    times = [t.finished - t.started for t in own if t.finished and t.started and not t.pauses]
    times += [t.cost for t in own if t.cost and t.pauses]  # between pauses, nobody trains
    running = [age(trial, stored.now) for trial in study.pending]
    if not running or not times:
        return Remaining(trials, None)
    each = statistics.median(times)
    rest = [max(0.0, each - seconds) for seconds in running]
    # The next free worker takes the next trial.
    for _ in range(trials):
        rest.remove(first := min(rest))
        rest.append(first + each)
    return Remaining(trials, max(rest))


def age(trial: Trial, now: float) -> float:
    """Seconds since a trial was started, or went on."""
    return max(0.0, now - (trial.resumed or trial.started or now))


def record(stored: Snapshot) -> dict[str, Any]:
    """The same as :func:`shown`, for programs."""
    study, left = stored.study, remaining(stored)
    best = study.best_trial if study.feasible else None
    return {
        "study": stored.name,
        "state": state_of(stored),
        "metric": study.metric,
        "direction": study.direction,
        "max_evals": stored.settings.get("max_evals"),
        "counted": study.spent,
        "trained": study.trained,
        "saved": study.saved,
        "cost": study.cost,
        "trials": {str(state): len(study.in_state(state)) for state in TrialState},
        "failures": study.failures_by_reason(),
        "best": None if best is None else {"trial": best.number, "value": best.value, "params": best.params},
        "running": [_running(trial, stored) for trial in study.pending],
        "seconds_left": left.seconds,
        "ended": study.ended,
    }


def _running(trial: Trial, stored: Snapshot) -> dict[str, Any]:
    worker, last = stored.workers.get(trial.worker or ""), trial.curve.last
    return {
        "trial": trial.number,
        "params": trial.params,
        "seconds": round(age(trial, stored.now), 1),
        "last_report": last and last.value,
        "progress": last and last.progress,
        "host": worker and worker.host,
        "pid": worker and worker.pid,
        "silent_for": worker and round(worker.silent_for, 1),
    }


def shown(stored: Snapshot, url: str) -> RenderableType:
    """A study on one screen."""
    study, left = stored.study, remaining(stored)
    total = stored.settings.get("max_evals")
    counts = Counter(trial.state for trial in study.trials)
    states = ", ".join(f"{counts[state]} {state}" for state in TrialState if counts[state]) or "no trials yet"
    lines = [
        f"{stored.name} in {url}: {state_of(stored)}",
        f"{study.spent:.3g} of {total} full runs ({states}){_eta(left, len(study.pending))}",
    ]
    if study.saved:
        lines.append(
            f"{study.trained:.3g} full runs trained, {study.saved:.3g} saved, {duration(study.cost)} of all runs"
        )
    if study.feasible:
        best = study.best_trial
        value = study.confirmed() or f"{best.value:.6g}"
        lines.append(f"best {study.metric} ({study.direction}): {value} in trial {best.number}")
        lines.append(f"  {show_params(best.params)}")
    elif study.completed:
        lines.append(f"no completed trial keeps the limits: {', '.join(map(str, study.constraints))}")
    lines += study.describe_front()[:1] if study.goal.others else []
    lines += [f"ended: {study.ended}"] if study.ended else []
    parts: list[RenderableType] = [Text(printable("\n".join(lines)))]
    if study.pending:
        parts.append(_running_table(stored))
    if study.failed:
        parts.append(_failures_table(stored))
    return Group(*parts)


def _eta(left: Remaining, at_a_time: int) -> str:
    if left.seconds is None:
        return ""
    return f", about {duration(left.seconds)} left with {at_a_time} at a time"


def _running_table(stored: Snapshot) -> Table:
    table = Table("running", "for", "last report", "worker", "parameters", box=box.SIMPLE_HEAD, pad_edge=False)
    for trial in stored.study.pending:
        facts = _running(trial, stored)
        report = "-" if facts["last_report"] is None else f"{facts['last_report']:.5g}"
        share = "" if facts["progress"] is None else f" at {facts['progress']:.0%}"
        worker = "unknown" if facts["host"] is None else printable(f"{facts['host']}:{facts['pid']}")
        if (facts["silent_for"] or 0.0) > QUIET:
            worker += f", silent for {duration(facts['silent_for'])}"
        params = show_params(trial.params)
        table.add_row(str(trial.number), duration(facts["seconds"]), report + share, worker, params)
    return table


def _failures_table(stored: Snapshot) -> Table:
    table = Table("failed", "reason", "last of them", box=box.SIMPLE_HEAD, pad_edge=False)
    last = {trial.reason or "unknown": trial.number for trial in stored.study.failed}
    for reason, count in stored.study.failures_by_reason().items():
        table.add_row(str(count), printable(reason), f"trial {last[reason]}")
    return table
