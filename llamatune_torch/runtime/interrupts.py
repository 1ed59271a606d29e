"""Ctrl-C and SIGTERM while a study runs: once ends it cleanly, twice at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self


class Interrupts:
    """SIGINT and SIGTERM become a ``KeyboardInterrupt`` where it does no harm; a context manager.

    The first signal is raised inside of :meth:`allowed` only, that is, while a trial is evaluated or waited for, so
    that it never hits between two steps of keeping the record; elsewhere it waits for :meth:`check`. It stays known,
    even if the code it was raised in swallows it. From the second on, it is raised wherever the program is.

    A handler that the program has set up itself is left alone, as is an ignored signal (``nohup``). Only the main
    thread can have handlers; in others this does nothing. They are restored at the end.
    """

    def __init__(self) -> None:
        self.count = 0
        self._open = False
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
                if signal.getsignal(number) is usual:
                    self._former[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raises what has been waiting."""
        if self.count:
            raise KeyboardInterrupt

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Where a signal may be raised."""
        self._open = True  # before the check: a signal in between is raised
        try:
            self.check()
            yield
        finally:
            self._open = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self._open or self.count > 1:
            raise KeyboardInterrupt
