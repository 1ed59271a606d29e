"""Ctrl-C, SIGTERM and SIGHUP while a study runs: the first ends it cleanly, the second ends it at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self


class Interrupts:
    """Turns SIGINT, SIGTERM and SIGHUP into a ``KeyboardInterrupt`` where it does no harm; a context manager.

    The first signal is raised inside :meth:`allowed` only, that is, while a trial is evaluated or waited for. It thus
    never hits between two steps of writing the record. Elsewhere it waits for :meth:`check`. It stays known even if
    the interrupted code swallows it. The second and later signals are raised wherever the program is.

    A handler that the program has set up itself is left alone, as is an ignored signal (``nohup``). Only the main
    thread can have handlers; in another thread, nothing happens. The former handlers are restored at the end.
    """

    def __init__(self) -> None:
        self.count = 0
        self._open = False
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            usual_handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
            if hasattr(signal, "SIGHUP"):  # not on Windows
                usual_handlers[signal.SIGHUP] = signal.SIG_DFL
            for number, usual in usual_handlers.items():
                if signal.getsignal(number) is usual:
                    self._former[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raises a signal that has been waiting."""
        if self.count:
            raise KeyboardInterrupt

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Lets a signal be raised in the body of the ``with``."""
        self._open = True  # before the check, so that a signal in between is raised
        try:
            self.check()
            yield
        finally:
            self._open = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self._open or self.count > 1:
            raise KeyboardInterrupt
