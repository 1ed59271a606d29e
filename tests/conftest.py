"""What all tests share: no network, one thread, no deadlines, a device to run on, and places for studies to live in."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: a download fails at once, not after a minute

import gc
import itertools
import logging
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

with warnings.catch_warnings():
    # linear_operator (below gpytorch) decorates with torch.jit.script, which torch 2.13 deprecates.
    warnings.filterwarnings("ignore", message=r"`torch\.jit\.script`", category=DeprecationWarning)
    import gpytorch  # noqa: F401  (imported here once, so that the exemption covers nothing else)

# Tens of points: more threads only wait for each other, and the machine is shared.
torch.set_num_threads(1)

# No deadline: the first example pays for imports. derandomize: the same examples every time, so that no run fails
# by chance; `--hypothesis-profile=explore` looks for new ones.
hypothesis.settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=1000)
hypothesis.settings.load_profile("repeatable")

STARTED = time.monotonic()

# The command line remembers there what was run: not in the home of whoever runs the tests. So does Trackio, which reads
# the name of its folder when it is imported.
STATE = tempfile.TemporaryDirectory(prefix="llamatune-state-")
os.environ["XDG_STATE_HOME"] = STATE.name
os.environ["TRACKIO_DIR"] = str(Path(STATE.name, "trackio"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--minutes", type=float, default=None, help="skip tests that have not begun by then")


def pytest_runtest_setup(item: pytest.Item) -> None:
    minutes = item.config.getoption("--minutes")
    if minutes is not None and time.monotonic() - STARTED > 60 * minutes:
        pytest.skip(f"--minutes {minutes:g} have passed")


def pytest_collection_finish() -> None:
    """Sets what was imported aside: each fine-tune ends with two full collections, and they would look at all of it."""
    gc.collect()
    gc.freeze()


COUNTER = itertools.count()
NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: torch.cuda.is_available() is False")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_CUDA])])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where the engine computes; the tests that use it run once for each kind of device there is."""
    return torch.device(request.param)


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


@pytest.fixture(autouse=True)
def one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """A silence is believed at the first look: the second takes 20 seconds. Tests of the second set it back."""
    from llamatune_torch.storage import heartbeat

    monkeypatch.setattr(heartbeat, "LOOKS_APART", 0.0)


@pytest.fixture(autouse=True)
def same_log_level() -> Iterator[None]:
    """A test that leaves the package's log level changed fails, rather than one that looks at lines after it."""
    level = logging.getLogger("llamatune_torch").level
    yield
    assert logging.getLogger("llamatune_torch").level == level


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/study.db"


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> str:
    """Where a durable study may live: the tests that use it run once for each kind."""
    return str(request.getfixturevalue(f"{request.param}_url"))
