"""The output of a running search: a line for each trial through ``logging``, and a progress bar."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeGuard

from tqdm import tqdm

from llamatune_torch.study import Study
from llamatune_torch.tables import show_params, show_value
from llamatune_torch.text import printable
from llamatune_torch.trial import Trial, TrialState

logger = logging.getLogger("llamatune_torch")


@contextmanager
def live_display(total: int, done: float, progress: bool) -> Iterator[tqdm[Any]]:
    """Shows log lines and a bar with the time left, for as long as it is open.

    If the program has not set up any logging, this package's lines go to standard error meanwhile. The bar is drawn
    on a terminal only, and never with ``progress=False``.
    """
    with ExitStack() as stack:
        if not logger.hasHandlers():
            stack.enter_context(_lines_on_stderr())
        if sys.stderr is None or sys.stderr.closed:  # a program without a terminal, as `2>&-` makes it
            progress = False
        bar = stack.enter_context(tqdm(total=total, unit="trial", disable=None if progress else True))
        bar.initial = bar.n = _shown(done)
        if not bar.disable:
            stack.enter_context(_lines_above_the_bar())
        yield bar


class _AboveBar:
    """A terminal on which text is written above the bar instead of into it."""

    def __init__(self, terminal: Any) -> None:
        self.terminal = terminal

    def write(self, text: str) -> None:
        tqdm.write(text, file=self.terminal, end="")

    def flush(self) -> None:
        self.terminal.flush()


@contextmanager
def _lines_above_the_bar() -> Iterator[None]:
    """Sends the lines of all log handlers that write to a terminal above the bar.

    The handlers stay, with their levels, formats and filters. tqdm's own ``logging_redirect_tqdm`` replaces them, also
    where there is none: a line then shows once for each logger on its way up.
    """
    handlers = [handler for handler in (*logging.root.handlers, *logger.handlers) if _writes_to_terminal(handler)]
    former = [(handler, handler.setStream(_AboveBar(handler.stream))) for handler in dict.fromkeys(handlers)]
    try:
        yield
    finally:
        for handler, terminal in former:
            handler.setStream(terminal)


def _writes_to_terminal(handler: logging.Handler) -> TypeGuard[logging.StreamHandler[Any]]:
    return isinstance(handler, logging.StreamHandler) and getattr(handler.stream, "isatty", bool)()


@contextmanager
def _lines_on_stderr() -> Iterator[None]:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    # The program may set up logging while it runs; lines show there from then on.
    handler.addFilter(lambda record: not logging.root.handlers)
    level = logger.level
    logger.addHandler(handler)
    if level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def advance(bar: tqdm[Any], done: float) -> None:
    """Sets a bar to a number of full runs, which a run that pauses adds a share to."""
    bar.n = _shown(done)
    bar.update(0)


def _shown(done: float) -> float:
    return int(done) if done == int(done) else round(done, 2)


def log_resumed(trial: Trial) -> None:
    """Logs that a paused trial goes on, and why."""
    if trial.resumed is not None:
        logger.info("trial %d goes on from %.0f%% to %.0f%%: %s", trial.number, *_percents(trial), trial.reason)


def log_stopped(study: Study, before: Study) -> None:
    """Logs which trials never go on, that might have before, and why."""
    numbers: dict[str, list[int]] = {}
    for trial in before.paused:
        now = study.trials[trial.number]
        if now.state is TrialState.STOPPED:
            numbers.setdefault(now.reason or "", []).append(now.number)
    for reason, same in numbers.items():
        named = f"trial {same[0]}" if len(same) == 1 else f"trials {', '.join(map(str, same))}"
        logger.info("%s stopped: %s", named, printable(reason))


def _percents(trial: Trial) -> tuple[float, float]:
    return 100 * trial.reached, 100 * trial.until


def log_trial(study: Study, trial: Trial) -> None:
    """Logs a line for a trial that has finished, with the best so far, or paused."""
    line = f"trial {trial.number}: {show_params(trial.params)}"
    if trial.state is TrialState.PAUSED:
        newest = "no value" if trial.curve.last is None else show_value(trial.curve.last.value)
        logger.info("%s paused at %.0f%% with %s", line, 100 * trial.reached, newest)
        return
    if trial.value is None:
        last = (trial.error or "").strip().splitlines()[-1:] or [""]
        logger.warning("%s %s: %s (%s)", line, trial.state, printable(trial.reason), printable(last[0]))
        return
    broken = [str(limit) for limit in study.constraints if not limit.is_kept(trial.outcomes)]
    line = f"{line} -> {show_value(trial.value)}" + (f", breaks {', '.join(broken)}" if broken else "")
    if not study.feasible:
        logger.info("%s | none keeps the limits yet", line)
        return
    best = study.best_trial
    logger.info("%s | best %s (trial %d)", line, show_value(best.value), best.number)
