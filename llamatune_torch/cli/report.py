"""``report``: the page of a stored study, once or as long as it runs."""

from __future__ import annotations

import time
from argparse import Namespace
from pathlib import Path

from llamatune_torch.cli.output import say
from llamatune_torch.cli.status import state_of
from llamatune_torch.errors import SettingsError
from llamatune_torch.settings import Settings
from llamatune_torch.storage.reader import Reader, Snapshot

#: The time until the next page, in times that the last one took.
PATIENCE = 20.0


def report(options: Namespace) -> int:
    """Writes the page; with ``--watch`` again whenever the study has changed, until it is finished or Ctrl-C."""
    reader, path = Reader(options.storage), Path(options.output)
    stored = reader.look(options.name)
    while True:
        is_live = options.watch is not None and state_of(stored) != "finished"
        start = time.monotonic()
        _write(stored, path, is_live)
        say(f"the page of study {stored.name!r} is {path}" + (", written again as it goes on" if is_live else ""))
        if not is_live:
            return 0
        time.sleep(max(options.watch, PATIENCE * (time.monotonic() - start)))
        stored = _next_change(reader, stored, options.watch)


def _write(stored: Snapshot, path: Path, is_live: bool) -> None:
    import llamatune_torch.runtime  # noqa: F401  # says so if torch cannot be loaded
    from llamatune_torch.insight.report import write_page  # takes its time to load

    settings = Settings(seed=stored.settings.get("seed", 0))
    try:
        write_page(stored.study, path, name=stored.name, live=is_live, settings=settings)
    except OSError as error:
        raise SettingsError(f"{path} cannot be written: {error.strerror}") from error


def _next_change(reader: Reader, known: Snapshot, every: float) -> Snapshot:
    """The study once it has changed, or has finished meanwhile."""
    while True:
        stored = reader.look(known.name)
        if stored.study.trials != known.study.trials or state_of(stored) == "finished":
            return stored
        time.sleep(every)
