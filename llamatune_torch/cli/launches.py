"""The targets that this user has run on this host, for ``llamatune resume``.

They are kept in the user's own folder, not in the database: whoever can write to a database, or hands out a file to
import, must not decide which code runs here.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from llamatune_torch.files import replacing
from llamatune_torch.storage.database import find_sqlite_file
from llamatune_torch.text import redact


def remember_launch(url: str, name: str, launch: Mapping[str, Any]) -> None:
    """Remembers the arguments of ``load_spec`` with which this user has run a study.

    A home that is missing or cannot be written is no reason not to run: ``resume`` then asks for the target.
    """
    with suppress(OSError, RuntimeError):  # RuntimeError: this user has no home
        file = _place(url, name)
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with replacing(file, private=True) as opened:
            json.dump({"study": name, **launch}, opened)


def find_launch(url: str, name: str) -> dict[str, Any] | None:
    """Returns what :func:`remember_launch` was given last; ``None`` if it was not called by this user on this host."""
    try:
        file = _place(url, name)
        if file.stat().st_uid != os.getuid():
            return None
        found = json.loads(file.read_text())
        launch = {"target": found["target"], "folder": found["folder"], "trainer": found["trainer"]}
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return launch


def _place(url: str, name: str) -> Path:
    """The file for a study: one each, so that searches do not get into each other's way."""
    folder = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    file = find_sqlite_file(url)
    # A home may be shared by many hosts, on which the same path is another file.
    key = json.dumps([socket.gethostname(), redact(url) if file is None else str(file.resolve()), name])
    return Path(folder) / "llamatune" / f"launch-{hashlib.sha256(key.encode()).hexdigest()[:20]}.json"
