"""The door to SQL: connections, transactions and what can go wrong with them, in SQLite and PostgreSQL.

Other modules say what is written. SQLite runs in WAL mode, and durable transactions are synced to the disk. A write
transaction takes its lock at the start, so that it never fails half-way because of another writer.
"""

from __future__ import annotations

import logging
import os
import socket
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, ProgrammingError
from sqlalchemy.pool import NullPool

from llamatune_torch.errors import SchemaError, SettingsError, StorageError
from llamatune_torch.files import working_directory
from llamatune_torch.storage.files import DatabaseFiles
from llamatune_torch.storage.schema import MIGRATIONS
from llamatune_torch.text import redact

logger = logging.getLogger(__name__)

T = TypeVar("T")

OPENING_PATIENCE = 10.0  # seconds for which opening a database is tried again after a failure
BUSY_SECONDS = 5  # how long SQLite itself waits for another writer, before this module tries again

# Unix time in seconds by the database's clock, also within a long transaction.
CLOCKS = {
    "sqlite": "(julianday('now') - 2440587.5) * 86400.0",
    "postgresql": "CAST(extract(epoch FROM clock_timestamp()) AS DOUBLE PRECISION)",
}

# The drivers that a URL may name, which take the options below.
DRIVERS = {"sqlite": ("", "pysqlite"), "postgresql": ("", "psycopg", "psycopg2")}

# A machine that is switched off does not say so: after half a minute its connection and its locks are given up, so that
# nobody else waits for them. A worker that is suspended within a transaction is disconnected.
POSTGRES_OPTIONS: Mapping[str, Any] = {
    "connect_timeout": 10,
    "tcp_user_timeout": 30_000,
    "options": "-c lock_timeout=30s -c idle_in_transaction_session_timeout=30s",
}

# A server that was suspended, or a network that swallows packets, answers nothing and refuses nothing.
SILENCE_SECONDS = 30.0  # how long a transaction in PostgreSQL may take before this side gives its connection up

# Only one process at a time creates tables and studies. No other program should use the same number.
OPENING_LOCK = 0x11A3A7E

DAMAGED = ("not a database", "malformed", "file is encrypted")
# Failures that no second attempt would change.
PERMANENT = (
    "readonly",
    "read-only",
    "unable to open",
    "authentication failed",
    "does not exist",
    "no such table",
    "permission denied",
)


class Transaction:
    """Runs SQL within one transaction; values are named, as in ``rows("... WHERE id = :id", id=3)``."""

    def __init__(self, connection: Connection, clock: str) -> None:
        self._connection = connection
        self._clock = clock

    def rows(self, sql: str, **values: Any) -> list[Mapping[str, Any]]:
        """Runs a query, and returns its rows as dicts by the names of the columns."""
        return [dict(row._mapping) for row in self._connection.execute(sa.text(sql), values)]

    def run(self, sql: str, **values: Any) -> int:
        """Runs a statement without a result, and returns the number of rows that it touched."""
        return self._connection.execute(sa.text(sql), values).rowcount

    def run_many(self, sql: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Runs a statement once for each of ``rows``, which may be none."""
        if rows:
            self._connection.execute(sa.text(sql), [dict(row) for row in rows])

    @cached_property
    def now(self) -> float:
        """The database's time at the first access, in Unix seconds; the same from then on."""
        return float(self.rows(f"SELECT {self._clock} AS now")[0]["now"])


class Database:
    """A database with this package's tables in it, made or brought up to date at the first use.

    Args:
        url: ``sqlite:///file.db`` or ``postgresql://user:password@host/name``.
        reading: promises to write nothing. A file that is not there is then not made, and one on a read-only disk can
            be opened too.

    Raises:
        SettingsError: the URL names neither, or PostgreSQL's driver is not installed.
        SchemaError: the file is damaged, a database of something else, or of a newer version.
        StorageError: it cannot be reached or written; for reading, it is not there.
    """

    def __init__(self, url: str, *, reading: bool = False) -> None:
        parsed = _parse_url(url)
        #: The URL without the password.
        self.display_url = redact(parsed.render_as_string(hide_password=False))
        self.kind = parsed.get_backend_name()
        #: The file of an SQLite database, ``None`` for PostgreSQL.
        self.file = find_sqlite_file(url)
        if self.file is not None:  # the program may change its working directory
            parsed = parsed.set(database=str(self.file))
            if reading and not self.file.exists():
                raise StorageError(f"there is no {self.file}")
            if not self.file.parent.is_dir():
                raise StorageError(f"{self.display_url} cannot be made: there is no folder {self.file.parent}")
        self._engine = _make_engine(parsed, reading)
        self._files = None if self.file is None or reading else DatabaseFiles(self.file)
        self._pid = os.getpid()
        weakref.finalize(self, _close, self._engine, self._pid)  # at the interpreter's exit at the latest
        opening = partial(self.read, self._check) if reading else partial(self.write, self._migrate, exclusive=True)
        #: The version of the tables that were found; 0 if there were none.
        self.version = self.keep_trying(opening, "to be opened", OPENING_PATIENCE)
        if reading and 0 < self.version < len(MIGRATIONS):
            Database(url)  # brings it up to date

    def write(self, work: Callable[[Transaction], T], *, exclusive: bool = False, durable: bool = True) -> T:
        """Runs ``work`` in a transaction that writes, and returns its result.

        Args:
            work: reads and writes within the transaction.
            exclusive: whether only one process at a time may run such a transaction.
            durable: whether the commit waits for the disk. Otherwise a power failure may undo it, but nothing else.
        """
        with self._connect(durable=durable) as connection:
            if self.kind == "postgresql":
                if exclusive:
                    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({OPENING_LOCK})")
                if not durable:
                    connection.exec_driver_sql("SET LOCAL synchronous_commit = off")
            return work(Transaction(connection, CLOCKS[self.kind]))

    def read(self, work: Callable[[Transaction], T]) -> T:
        """Runs ``work`` in a transaction that waits for nobody and changes nothing."""
        with self._connect(reading=True) as connection:
            return work(Transaction(connection, CLOCKS[self.kind]))

    @contextmanager
    def _connect(self, **options: bool) -> Iterator[Connection]:
        """Connects for one transaction; what is written goes to the files that other programs will read."""
        if self._files is None:
            with (
                self._live_engine().connect().execution_options(**options) as connection,
                _hang_up_after(SILENCE_SECONDS, connection),
                connection.begin(),
            ):
                yield connection
            return
        self._files.check_identity()
        with self._live_engine().connect().execution_options(**options) as connection:
            notes = connection.connection.info
            self._files.check(notes)
            with connection.begin():
                self._files.check_identity()
                yield connection
            self._files.note(notes)

    def keep_trying(
        self, attempt: Callable[[], T], what: str, patience: float, at_failure: Callable[[], object] | None = None
    ) -> T:
        """Runs ``attempt``, again after a failure that may pass, for ``patience`` seconds; returns its result.

        Args:
            attempt: one transaction; a failed one may have come through all the same, if the connection broke late.
            what: names the work in messages, as in "the end of a trial to be written".
            patience: seconds; 0 for one attempt.
            at_failure: called once, after the first failure that may pass.

        Raises:
            SchemaError: the database is damaged.
            StorageError: any other failure, if it did not pass.
        """
        deadline, pause = time.monotonic() + patience, 0.05
        while True:
            try:
                return attempt()
            except DBAPIError as error:
                reason = str(error.orig).strip()
                if any(sign in reason for sign in DAMAGED):
                    raise SchemaError(f"{self.display_url} is damaged, or no database at all: {reason}") from error
                permanent = isinstance(error, ProgrammingError) or any(sign in reason for sign in PERMANENT)
                if permanent or time.monotonic() + pause > deadline:
                    waited = "" if permanent else f" for {patience:g} s"
                    raise StorageError(f"{self.display_url} did not allow{waited} {what}: {reason}") from error
                if at_failure is not None:
                    logger.warning("%s: %s; trying again for up to %g s", self.display_url, reason, patience)
                    at_failure()
                    at_failure = None
                time.sleep(pause)
                pause = min(2 * pause, 2.0)

    def _live_engine(self) -> Engine:
        if os.getpid() != self._pid:  # after a fork: the connections are the parent's
            self._engine.dispose(close=False)
            self._pid = os.getpid()
        return self._engine

    def _check(self, transaction: Transaction) -> int:
        """Checks the file, and returns the version of its tables, 0 for none."""
        if self.kind == "sqlite":
            verdict = transaction.rows("PRAGMA quick_check(1)")[0]["quick_check"]
            if verdict != "ok":
                raise SchemaError(f"{self.display_url} is damaged: {verdict}")
        tables = self._list_tables(transaction)
        if "llamatune_schema" not in tables:
            if tables and self.kind == "sqlite":  # a server may well be shared with other things, a file is not
                raise SchemaError(
                    f"{self.display_url} is a database of something else: it has the tables {sorted(tables)}"
                )
            return 0
        version = int(transaction.rows("SELECT version FROM llamatune_schema")[0]["version"])
        if version > len(MIGRATIONS):
            raise SchemaError(
                f"{self.display_url} was made by a newer version of llamatune-torch (its schema is {version}, "
                f"this one knows up to {len(MIGRATIONS)}): update with pip install -U llamatune-torch"
            )
        return version

    def _migrate(self, transaction: Transaction) -> int:
        """Makes the tables, or brings them up to date; returns the version that was there."""
        version, newest = self._check(transaction), len(MIGRATIONS)
        if version == 0:
            transaction.run("CREATE TABLE llamatune_schema (version BIGINT NOT NULL)")
            transaction.run("INSERT INTO llamatune_schema VALUES (0)")
        for migration in MIGRATIONS[version:]:
            for statement in migration:
                transaction.run(statement)
        if version < newest:
            transaction.run("UPDATE llamatune_schema SET version = :version", version=newest)
        return version

    def _list_tables(self, transaction: Transaction) -> set[str]:
        if self.kind == "sqlite":
            query = "SELECT name FROM sqlite_master WHERE type = 'table'"
        else:
            query = "SELECT tablename AS name FROM pg_tables WHERE schemaname = current_schema()"
        return {str(row["name"]) for row in transaction.rows(query)}


def find_sqlite_file(url: str) -> Path | None:
    """Returns the file that a URL names; ``None`` for PostgreSQL.

    Raises:
        SettingsError: the URL names neither.
        FolderError: it is relative to a working directory that is gone.
    """
    parsed = _parse_url(url)
    if parsed.get_backend_name() != "sqlite":
        return None
    try:
        file = Path(str(parsed.database)).expanduser()  # "~" is the home folder
    except RuntimeError:
        raise SettingsError(f"storage is {redact(url)!r}, but there is no home folder for its ~") from None
    if not file.is_absolute():
        working_directory(f"{redact(url)!r} is relative to it")
    return file.absolute()


def _parse_url(url: Any) -> URL:
    """Parses the URL of a storage; no message has a password of it, nor has the chain of exceptions."""
    expected = "storage must be a URL such as 'sqlite:///study.db' or 'postgresql://user@host/name'"
    if not isinstance(url, str):
        raise SettingsError(f"{expected}, but got {url!r}")
    try:
        parsed = make_url(url)
        kind = parsed.get_backend_name()
    except (ArgumentError, ValueError):
        raise SettingsError(f"{expected}, but got {redact(url)!r}") from None
    if kind not in CLOCKS:
        raise SettingsError(f"{expected}, but got one of {kind!r}")
    driver = parsed.drivername.partition("+")[2]
    if driver not in DRIVERS[kind]:
        known = [known for known in DRIVERS[kind] if known]
        raise SettingsError(f"the driver in a URL of {kind} must be one of {known} or left out, but got {driver!r}")
    if "@" in (parsed.host or ""):
        raise SettingsError(f"an @ in a password must be written as %40, but got {redact(url)!r}")
    if kind == "sqlite" and (not parsed.database or parsed.database == ":memory:" or "uri" in parsed.query):
        raise SettingsError(f"storage must name a file, as in 'sqlite:///study.db', but got {redact(url)!r}")
    return parsed


@contextmanager
def _hang_up_after(seconds: float, connection: Connection) -> Iterator[None]:
    """Cuts a connection's socket if the body takes longer, so that a wait for the server ends with an error."""
    if connection.dialect.name == "sqlite":
        yield
        return
    descriptor = connection.connection.dbapi_connection.fileno()  # type: ignore[union-attr]  # PostgreSQL's drivers
    lock, ended = threading.Lock(), False

    def hang_up() -> None:
        with lock, suppress(OSError):
            if not ended:  # later, the descriptor may be another's
                with socket.socket(fileno=os.dup(descriptor)) as line:
                    line.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, hang_up)
    timer.daemon = True
    with suppress(RuntimeError):  # no new threads at the interpreter's end
        timer.start()
    try:
        yield
    finally:
        with lock:
            ended = True
        timer.cancel()


def _close(engine: Engine, pid: int) -> None:
    if os.getpid() == pid:  # in a fork's child, they are the parent's to close
        engine.dispose()


def _make_engine(url: URL, reading: bool) -> Engine:
    if url.get_backend_name() == "sqlite":
        if reading:  # opened for each look: what was opened as a file that never changes shows no change
            engine = sa.create_engine(
                "sqlite://", creator=partial(_open_read_only, str(url.database)), poolclass=NullPool
            )
        else:
            engine = sa.create_engine(url, connect_args={"timeout": BUSY_SECONDS})
            sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin)
        return engine
    if "+" not in url.drivername:
        url = url.set(drivername="postgresql+psycopg")
    options = {key: value for key, value in POSTGRES_OPTIONS.items() if key not in url.query}
    try:
        return sa.create_engine(url, connect_args=options)
    except ImportError as error:  # also a driver that is there without its library
        needed = error.name or url.get_driver_name()
        raise SettingsError(f"PostgreSQL needs {needed}: pip install 'llamatune-torch[postgres]'") from error


def _open_read_only(database: str) -> sqlite3.Connection:
    """Opens a file so that nothing is written, not even SQLite's own files beside it where that is forbidden.

    A reader leaves a mark in such a file, so that no writer moves what it reads. Where it cannot, and no process is
    writing, SQLite takes the file for one that never changes.
    """
    file = Path(database)
    idle = not file.with_name(f"{file.name}-wal").exists()
    may_mark = os.access(file, os.W_OK) and os.access(file.parent, os.W_OK)
    how = "mode=ro&immutable=1" if idle and not may_mark else "mode=rw"
    connection = sqlite3.connect(
        f"file:{quote(str(file))}?{how}", uri=True, timeout=BUSY_SECONDS, check_same_thread=False
    )
    connection.isolation_level = None
    connection.execute("PRAGMA query_only = 1")
    return connection


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # Python's own BEGIN would come late, and without its lock
    connection.execute("PRAGMA journal_mode = WAL")


def _begin(connection: Connection) -> None:
    options = connection.get_execution_options()
    if options.get("reading"):
        connection.exec_driver_sql("BEGIN")
        return
    durable = options.get("durable", True)
    connection.exec_driver_sql(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
    # SQLite's own way to wait for another writer is to look ever less often: unlucky ones would wait for a second.
    connection.exec_driver_sql("PRAGMA busy_timeout = 0")
    deadline = time.monotonic() + BUSY_SECONDS
    while time.monotonic() < deadline:
        try:
            connection.connection.cursor().execute("BEGIN IMMEDIATE")
            break
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                break
            time.sleep(0.003)
    if not connection.connection.dbapi_connection.in_transaction:  # type: ignore[union-attr]  # it is sqlite3's
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # raises what the last attempt has raised
    connection.exec_driver_sql(f"PRAGMA busy_timeout = {int(1000 * BUSY_SECONDS)}")
