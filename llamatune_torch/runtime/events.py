"""Listeners: objects that hear of the trials of a search, for trackers, plots and reports."""

from __future__ import annotations

import logging
import traceback
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Literal

from llamatune_torch.errors import CallbackWarning, SettingsError
from llamatune_torch.trial import Trial

logger = logging.getLogger(__name__)

Event = Literal["on_start", "on_report", "on_pause", "on_resume", "on_finish"]


class Listener:
    """Hears of the trials of a search while it runs. Subclass it and override what you need.

    Each method gets the search (a ``LlamaTune``) and the trial as it is on record now. All are called one after the
    other, in the thread that called ``optimize`` or ``tune``, wherever the trials themselves run; under ``torchrun`` on
    rank 0 only. They may call ``search.stop()``. An exception in one of them is a ``CallbackWarning``, and the study
    goes on. The search waits for them, so they should be quick.

    Example:
        >>> class Curves(Listener):
        ...     def on_report(self, search, trial):
        ...         print(trial.number, trial.curve.last)
        >>> LlamaTune(space, train, callbacks=[Curves()]).optimize()
    """

    def on_start(self, search: Any, trial: Trial) -> None:
        """Hears that a trial has been started, also a retry; it is on record and begins to run next."""

    def on_report(self, search: Any, trial: Trial) -> None:
        """Hears that a point was added to a trial's learning curve.

        The processes of an ``executor`` send their curves with the outcome, so nothing is heard of theirs before
        :meth:`on_finish`.
        """

    def on_pause(self, search: Any, trial: Trial) -> None:
        """Hears that a trial has paused: it may go on later, in another process too, or be stopped."""

    def on_resume(self, search: Any, trial: Trial) -> None:
        """Hears that a paused trial goes on; it is on record and begins to run next."""

    def on_finish(self, search: Any, trial: Trial) -> None:
        """Hears that a trial is COMPLETE or FAILED. A LOST trial has not finished: it may run again."""


#: A listener, or a function that is called as its ``on_finish``.
Callback = Listener | Callable[[Any, Trial], Any]


def check_callbacks(callbacks: Iterable[Any]) -> None:
    """Refuses what can hear of nothing.

    Raises:
        SettingsError: one is neither a ``Listener`` nor callable, or is a class where its instance is meant.
    """
    for callback in callbacks:
        if isinstance(callback, type) and issubclass(callback, Listener):
            raise SettingsError(f"callbacks must hold instances of a Listener, but got the class {callback.__name__}")
        if not isinstance(callback, Listener) and not callable(callback):
            raise SettingsError(f"callbacks must be callable or a Listener, but got {callback!r}")


def notify(callbacks: Iterable[Callback], event: Event, search: Any, trial: Trial) -> None:
    """Tells all that listen to an event of a trial. What an ``Exception`` in one of them says becomes a warning."""
    for callback in callbacks:
        if isinstance(callback, Listener):
            listen = getattr(callback, event)
        elif event == "on_finish":
            listen = callback
        else:
            continue
        try:
            listen(search, trial)
        except Exception as error:  # a plotting hiccup must not end a week's search
            logger.debug("callback %r failed in %s:\n%s", callback, event, traceback.format_exc())
            warnings.warn(f"callback {callback!r} raised {error!r}", CallbackWarning, stacklevel=2)
