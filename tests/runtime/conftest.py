"""Places where a study may live: memory, an SQLite file, a PostgreSQL server that the tests start themselves."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

COUNTER = itertools.count()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a real server, without syncs to the disk; skipped with the reason where none can be started."""
    from postgres import NoServer, server

    try:
        with server(durable=False) as url:
            yield url
    except NoServer as reason:
        pytest.skip(str(reason))


@pytest.fixture
def postgres_url(postgres_server: str) -> str:
    """A new schema on the server, and a user whose tables are there: quicker than a new database."""
    import psycopg

    name = f"test{next(COUNTER)}"
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {name}")  # type: ignore[arg-type]  # a name of our own making
        connection.execute(f"CREATE ROLE {name} LOGIN SUPERUSER")  # type: ignore[arg-type]
        connection.execute(f"ALTER ROLE {name} SET search_path = {name}")  # type: ignore[arg-type]
    return postgres_server.replace("//tuner@", f"//{name}@")


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/study.db"


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> str:
    """Where a durable study may live: the tests that use it run once for each kind."""
    return str(request.getfixturevalue(f"{request.param}_url"))
