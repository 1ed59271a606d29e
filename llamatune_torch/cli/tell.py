"""``tell``: a result entered by hand."""

from __future__ import annotations

from argparse import Namespace

from llamatune_torch.cli.search import reopened
from llamatune_torch.errors import SettingsError
from llamatune_torch.storage.reader import Reader
from llamatune_torch.storage.unsaved import describe_result
from llamatune_torch.trial import Outcome


def tell(options: Namespace) -> int:
    """Records the value of a trial that is running, or was lost with a silent worker, or that it failed."""
    if (options.value is None) == (options.failed is None):
        raise SettingsError("say either VALUE or --failed REASON")
    if options.failed is not None:
        outcome = Outcome.failure(options.failed, cost=options.cost, notes={"told": "by hand"})
    else:
        outcome = Outcome(options.value, cost=options.cost, notes={"told": "by hand"})
    stored = Reader(options.storage).look(options.name)
    told = reopened(options.storage, stored).tell(options.number, outcome)
    print(f"trial {told.number} of study {stored.name!r}: {told.state}, {describe_result(told)}")
    return 0
