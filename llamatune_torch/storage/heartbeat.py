"""Signs of life of workers, and the trials of stalled ones.

A worker on a machine that was switched off says nothing about the trial it ran. Parameters that stall one worker after
the other do: a trial that uses up all memory may take its whole worker with it, and nobody is left to report that.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple
from weakref import WeakMethod

from llamatune_torch.errors import StorageError
from llamatune_torch.storage.database import Transaction
from llamatune_torch.storage.session import LockedStudy
from llamatune_torch.storage.store import is_inconclusive
from llamatune_torch.storage.validation import number, take
from llamatune_torch.trial import Cause, TrialState

logger = logging.getLogger(__name__)


class Heartbeat:
    """Calls ``beat`` every ``interval`` seconds from a thread of its own, while there are trials to keep alive.

    The thread goes on through a long training step. It ends an interval after the last trial at most. It also ends when
    the object whose method ``beat`` is has been garbage-collected.
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


LOOKS_APART = 2.0  # beats between the two looks at a silence


def beat_interval(grace: float) -> float:
    """Returns the seconds between two signs of life of a worker with this ``grace``."""
    return min(10.0, grace / 4)


class Doubts:
    """Silences that were seen once. A trial is taken from its worker only after a second look.

    All workers seem to have been silent when a machine wakes up, its clock is set or a database comes back. That lasts
    until each has given its next sign. Between the two looks lie ``pause`` seconds, by a clock that stands still in a
    suspended machine and that nobody sets.
    """

    def __init__(self, pause: float) -> None:
        self._pause = pause
        self._seen: dict[str, tuple[float, float]] = {}

    def are_confirmed(self, worker: str, heartbeat: float) -> bool:
        """Looks at the last sign of a worker that seems silent; True if it is one that was seen ``pause`` ago."""
        now = time.monotonic()
        seen, since = self._seen.get(worker, (None, now))
        if seen != heartbeat:
            since = now
        self._seen[worker] = heartbeat, since
        return now - since >= self._pause


class Worker(NamedTuple):
    """A process that runs trials: its name, host, process id, and the seconds since its last sign of life."""

    name: str
    host: str
    pid: int
    silent_for: float


RUNNING_WITH_WORKERS = (
    "FROM llamatune_trials t JOIN llamatune_workers w ON w.id = t.worker "
    "WHERE t.study = :study AND t.state = 'running' AND w.id <> :own"
)


def register_worker(locked: LockedStudy, worker: str) -> None:
    """Writes that this process is a worker of that name; this is a sign of life too."""
    locked.transaction.run(
        "INSERT INTO llamatune_workers (id, host, pid, started, heartbeat) VALUES (:id, :host, :pid, :now, :now) "
        "ON CONFLICT (id) DO UPDATE SET heartbeat = excluded.heartbeat",
        id=worker,
        host=socket.gethostname(),
        pid=os.getpid(),
        now=locked.now,
    )


def give_sign_of_life(transaction: Transaction, worker: str) -> None:
    """Writes that a worker is alive."""
    transaction.run("UPDATE llamatune_workers SET heartbeat = :now WHERE id = :id", id=worker, now=transaction.now)


def mark_stalled(locked: LockedStudy, grace: float, retries: int, own: str, doubts: Doubts) -> None:
    """Marks the trials of workers other than ``own`` that have given no sign of life for ``grace`` seconds.

    A sign in the future, from before a clock was set back, is none. What has been seen only once stays in ``doubts``.
    They are LOST, and may run again. A trial whose parameters have run again ``retries`` times already is FAILED.
    """
    for row in locked.transaction.rows(
        f"SELECT t.number, w.id, w.heartbeat {RUNNING_WITH_WORKERS} AND (w.heartbeat < :latest OR w.heartbeat > :now)",
        study=locked.id,
        latest=locked.now - grace,
        now=locked.now,
        own=own,
    ):
        heartbeat = take(row, "heartbeat", f"worker {row['id']}", number)
        if not doubts.are_confirmed(row["id"], heartbeat):
            continue
        trial = locked.read(row["number"])
        seconds = locked.now - heartbeat
        since = f"for {seconds:.0f} s" if seconds >= 0 else f"since the clock was set back, by {-seconds:.0f} s or more"
        error = f"no sign of life of worker {row['id']} {since}"
        others = [t for t in locked.trials if t.first == trial.first and t.number != trial.number]
        times = 1 + sum(t.cause is Cause.SILENT for t in others)
        state, verdict = TrialState.LOST, "is lost"
        # Not if one of the others has come to an end of its own: then its worker was only suspended.
        if times > retries and all(map(is_inconclusive, others)):
            state, verdict = TrialState.FAILED, "has failed"
            error += f"; workers silenced by these parameters: {times}"
        logger.warning("trial %d %s: %s (grace: %g s)", trial.number, verdict, error, grace)
        given_up = trial.given_up(Cause.SILENT, "worker silent", locked.now, error)
        locked.put(replace(given_up, state=state))


def signs_of_life(locked: LockedStudy, own: str) -> dict[int, float]:
    """Reads when the workers other than ``own`` were last heard of (Unix seconds), by the number of their trials."""
    query = f"SELECT t.number, w.id, w.heartbeat {RUNNING_WITH_WORKERS}"
    rows = locked.transaction.rows(query, study=locked.id, own=own)
    return {row["number"]: take(row, "heartbeat", f"worker {row['id']}", number) for row in rows}
