"""Signs of life, and what becomes of the trials of stalled workers.

A machine that was switched off says nothing about what it ran. Parameters that silence one worker after the other do:
a kernel that runs out of memory may kill the whole worker, with nobody left to tell of it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple
from weakref import WeakMethod

from llamatune_torch.errors import StorageError
from llamatune_torch.storage.session import LockedStudy
from llamatune_torch.trial import Cause, TrialState

logger = logging.getLogger(__name__)


class Heartbeat:
    """Calls ``beat`` every ``interval`` seconds from a thread of its own, while there are trials to keep alive.

    The thread goes on through a long training step. It ends an interval after the last trial at most, and with the
    object whose method ``beat`` is: a search that nobody holds any more runs nothing.
    """

    def __init__(self, beat: Callable[[], None], interval: float) -> None:
        self.interval = interval
        self.numbers: set[int] = set()
        self._lock = threading.Lock()
        self._wake = wake = threading.Event()
        self._beat: WeakMethod[Callable[[], None]] = WeakMethod(beat, lambda _: wake.set())
        self._thread: threading.Thread | None = None

    def add(self, numbers: Iterable[int]) -> None:
        """Keeps these trials alive too."""
        with self._lock:
            self.numbers |= set(numbers)
            if self._thread is None or not self._thread.is_alive():  # a fork leaves threads behind
                self._thread = threading.Thread(target=self._run, name="llamatune-heartbeat", daemon=True)
                self._thread.start()

    def remove(self, number: int) -> None:
        """No longer keeps a trial alive."""
        with self._lock:
            self.numbers.discard(number)

    def _run(self) -> None:
        silent = False
        while True:
            self._wake.wait(self.interval)
            self._wake.clear()
            with self._lock:
                beat = self._beat()
                if not self.numbers or beat is None:
                    self._thread = None
                    return
            try:
                beat()
                silent = False
            except StorageError as error:
                if not silent:  # once an outage
                    logger.warning("no sign of life could be given: %s", error)
                silent = True
            del beat  # it holds the object


class Worker(NamedTuple):
    """Who runs trials: its name, host, process, and the seconds since its last sign of life."""

    name: str
    host: str
    pid: int
    silent_for: float


RUNNING_WITH_WORKERS = (
    "FROM llamatune_trials t JOIN llamatune_workers w ON w.id = t.worker "
    "WHERE t.study = :study AND t.state = 'running' AND w.id <> :own"
)


def mark_stalled(claim: LockedStudy, grace: float, retries: int, own: str) -> None:
    """Marks the trials of workers other than ``own`` that have given no sign of life for ``grace`` seconds.

    They are LOST, but FAILED where their parameters have been run again ``retries`` times already.
    """
    for row in claim.transaction.rows(
        f"SELECT t.number, w.id, w.heartbeat {RUNNING_WITH_WORKERS} AND w.heartbeat < :latest",
        study=claim.id,
        latest=claim.now - grace,
        own=own,
    ):
        trial = claim.recorded(row["number"])
        error = f"no sign of life of worker {row['id']} for {claim.now - row['heartbeat']:.0f} s"
        others = [t for t in claim.trials if t.first == trial.first and t.number != trial.number]
        times = 1 + sum(t.cause is Cause.SILENT for t in others)
        state, verdict = TrialState.LOST, "is lost"
        # Not if one of the others has come to an end after all: then its worker was only suspended.
        if times > retries and all(t.state is TrialState.LOST for t in others):
            state, verdict = TrialState.FAILED, "has failed"
            error += f"; workers silenced by these parameters: {times}"
        logger.warning("trial %d %s: %s (grace: %g s)", trial.number, verdict, error, grace)
        given_up = trial.given_up(Cause.SILENT, "worker silent", claim.now, error)
        claim.put(replace(given_up, state=state))


def signs_of_life(claim: LockedStudy, own: str) -> dict[int, float]:
    """The trials that others run, and when their workers were last heard of."""
    rows = claim.transaction.rows(f"SELECT t.number, w.heartbeat {RUNNING_WITH_WORKERS}", study=claim.id, own=own)
    return {row["number"]: row["heartbeat"] for row in rows}
