"""Signs of life of a process that runs trials."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from weakref import WeakMethod

from llamatune_torch.errors import StorageError
from llamatune_torch.runtime.display import logger


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
