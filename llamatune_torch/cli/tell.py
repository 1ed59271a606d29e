"""``tell``: a result entered by hand."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace

from llamatune_torch.cli.output import say
from llamatune_torch.errors import SettingsError
from llamatune_torch.storage.durable import DurableStore
from llamatune_torch.storage.reader import Reader
from llamatune_torch.storage.unsaved import describe_result
from llamatune_torch.trial import Outcome, as_outcome


def tell(options: Namespace) -> int:
    """Records the value of a trial that is running, or was lost with a silent worker, or that it failed.

    This needs the store alone: no search, no engine, no torch.
    """
    if (options.value is None) == (options.failed is None):
        raise SettingsError("say either VALUE or --failed REASON")
    if options.failed is not None:
        outcome = Outcome.failure(options.failed, cost=options.cost, notes={"told": "by hand"})
    else:
        outcome = Outcome(options.value, cost=options.cost, notes={"told": "by hand"})
    stored = Reader(options.storage).look(options.name)
    # Opened as it is: nothing in its definition changes.
    store = DurableStore(options.storage, stored.name, replace(stored.study, trials=()))
    checked = as_outcome(outcome, store.study.direction)
    told = store.change(options.number, lambda running, now: running.finished_with(checked, now))
    say(f"trial {told.number} of study {stored.name!r}: {told.state}, {describe_result(told)}")
    return 0
