"""A PostgreSQL server of one's own for as long as it is needed: in a folder, on a socket, gone afterwards.

Nothing is installed or configured; it uses the binaries that the system has.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SECONDS_TO_START = 60.0


class NoServer(Exception):  # noqa: N818  (a reason to skip, not an error)
    """No server can be started here; the message says why."""


def binary(name: str) -> str:
    """The path of one of PostgreSQL's programs; Debian keeps the newest of several versions off the PATH."""
    found = shutil.which(name)
    debian = sorted(
        Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[4].split(".")[0])
    )
    if found is None and not debian:
        raise NoServer(f"PostgreSQL is not installed: no {name} on the PATH or in /usr/lib/postgresql")
    return str(debian[-1]) if debian else str(found)


@contextmanager
def server(durable: bool = True) -> Iterator[str]:
    """Starts a server, and yields the URL of its database; ``durable=False`` does without syncs to the disk.

    Raises:
        NoServer: the binaries are missing, or it does not start.
    """
    initdb, postgres = binary("initdb"), binary("postgres")
    folder = Path(tempfile.mkdtemp(prefix="llamatune-postgres-"))
    who: dict[str, str] = {}
    if os.getuid() == 0:  # it refuses to run as root
        users = {user.pw_name for user in pwd.getpwall()}
        name = "postgres" if "postgres" in users else "nobody"
        shutil.chown(folder, user=name)
        who = {"user": name}
    process: subprocess.Popen[bytes] | None = None
    try:
        data, log = folder / "data", folder / "log"
        made = subprocess.run(
            [initdb, "-D", str(data), "-U", "tuner", "--auth=trust", "--no-sync", "-E", "UTF8"],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=folder,
            **who,  # type: ignore[call-overload]  # the user, or nothing
        )
        if made.returncode:
            raise NoServer(f"initdb failed: {made.stderr.strip()[-300:]}")
        options = ["-k", str(folder), "-c", "listen_addresses=", "-c", f"fsync={'on' if durable else 'off'}"]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [postgres, "-D", str(data), *options], stdout=output, stderr=output, cwd=folder, **who
            )  # type: ignore[call-overload]
        url = f"postgresql://tuner@/postgres?host={folder}"
        _wait_until_ready(folder, process, log)
        yield url
    finally:
        if process is not None:
            process.send_signal(signal.SIGQUIT)  # at once: what it holds is thrown away
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_ready(folder: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    import psycopg

    deadline = time.monotonic() + SECONDS_TO_START
    while True:
        try:
            psycopg.connect(host=str(folder), user="tuner", dbname="postgres", connect_timeout=5).close()
            return
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise NoServer(f"the server did not start: {log.read_text()[-300:]}") from None
            time.sleep(0.1)
