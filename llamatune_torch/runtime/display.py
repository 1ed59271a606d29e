"""The output of a running search: a line for each trial through ``logging``, and a progress bar."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from llamatune_torch.study import Study
from llamatune_torch.tables import show_params, show_value
from llamatune_torch.text import printable
from llamatune_torch.trial import Trial

logger = logging.getLogger("llamatune_torch")


@contextmanager
def live_display(total: int, done: int, progress: bool) -> Iterator[tqdm[Any]]:
    """Shows log lines and a bar with the time left, for as long as it is open.

    If the program has not set up any logging, this package's lines go to standard error meanwhile. The bar is drawn
    on a terminal only, and never with ``progress=False``.
    """
    with ExitStack() as stack:
        if not logger.hasHandlers():
            stack.enter_context(_lines_on_stderr())
        if sys.stderr is None or sys.stderr.closed:  # a program without a terminal, as `2>&-` makes it
            progress = False
        bar = stack.enter_context(tqdm(total=total, initial=done, unit="trial", disable=None if progress else True))
        if not bar.disable:
            stack.enter_context(logging_redirect_tqdm([logging.root, logger]))
        yield bar


@contextmanager
def _lines_on_stderr() -> Iterator[None]:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    level = logger.level
    logger.addHandler(handler)
    if level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def log_trial(study: Study, trial: Trial) -> None:
    """Logs a line for a finished trial, with the best so far."""
    line = f"trial {trial.number}: {show_params(trial.params)}"
    if trial.value is None:
        last = (trial.error or "").strip().splitlines()[-1:] or [""]
        logger.warning("%s %s: %s (%s)", line, trial.state, printable(trial.reason), printable(last[0]))
        return
    best = study.best_trial
    logger.info("%s -> %s | best %s (trial %d)", line, show_value(trial.value), show_value(best.value), best.number)
