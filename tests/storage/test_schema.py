"""The tables: older databases are brought up to date, newer ones are refused."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pytest
from durable import execute, states, tuner

from llamatune_torch import Curve, Integer, LlamaTune, Outcome, Real, SchemaError, StorageError, load_study
from llamatune_torch.storage import database, schema

HERE = Path(__file__).parent


def test_a_database_of_a_newer_version(url: str) -> None:
    tuner(url).ask()
    execute(url, "UPDATE llamatune_schema SET version = 99")
    with pytest.raises(SchemaError, match=r"made by a newer version of llamatune-torch \(its schema is 99, this one"):
        tuner(url)


def test_a_study_of_version_1_goes_on(sqlite_url: str, tmp_path: Path) -> None:
    """A dump of a real file, made by the first version that stored any; it never changes."""
    with closing(sqlite3.connect(tmp_path / "study.db")) as connection:
        connection.executescript((HERE / "study-v1.sql").read_text())
    mine = LlamaTune(
        {
            "lr": Real(1e-5, 1e-2, prior="log-uniform"),
            "method": ["full", "lora"],
            "rank": Integer(1, 64, when={"method": "lora"}),
            "decay": Real(0.001, 0.1, prior="uniform", special=[0.0]),
        },
        storage=sqlite_url,
        name="old",
        direction="minimize",
        metric="loss",
    )
    assert states(mine.study) == ["complete", "failed", "lost", "complete", "running"]
    assert mine.study.best_value == 0.30000000000000004
    assert mine.study.trials[0].curve.values == (0.5, math.inf)
    assert mine.settings.seed == 7
    trial = mine.report(4, 1, 0.25)  # was running
    assert mine.tell(trial, Outcome(0.125, curve=Curve((1, 2), (0.25, math.nan), (None, 1)))).number == 4
    assert repr(load_study(sqlite_url).trials[4].curve.values) == "(0.25, nan)"
    assert load_study(sqlite_url).trials[0].curve.values == (0.5, math.inf)
    assert mine.ask().number == 5


def test_older_databases_are_migrated_step_by_step(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tuner(url)
    before.tell(before.ask(), 0.5)
    newer = (
        *schema.MIGRATIONS,
        ("ALTER TABLE llamatune_studies ADD COLUMN owner TEXT", "UPDATE llamatune_studies SET owner = name"),
        ("ALTER TABLE llamatune_studies ADD COLUMN mood TEXT",),
    )
    monkeypatch.setattr(database, "MIGRATIONS", newer)
    after = tuner(url)
    assert after.study.trials == before.study.trials
    rows = database.Database(url).write(lambda t: t.rows("SELECT owner, mood FROM llamatune_studies"))
    assert rows == [{"owner": "s", "mood": None}]
    assert database.Database(url).write(lambda t: t.rows("SELECT version FROM llamatune_schema")) == [
        {"version": schema.VERSION + 2}
    ]
    tuner(url)  # is not migrated again


def test_a_migration_that_fails_leaves_the_older_version(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tuner(url).ask()
    broken = ("ALTER TABLE llamatune_studies ADD COLUMN owner TEXT", "UPDATE llamatune_nowhere SET a = 1")
    with monkeypatch.context() as patch:
        patch.setattr(database, "MIGRATIONS", (*schema.MIGRATIONS, broken))
        with pytest.raises(StorageError, match="llamatune_nowhere"):
            tuner(url)
    assert tuner(url).ask().number == 1


def test_the_dump_of_version_1_is_what_version_1_makes(sqlite_url: str, tmp_path: Path) -> None:
    """It may change until the first release; from then on a new need is a new migration."""
    execute(sqlite_url, "SELECT 1")
    query = "SELECT name, sql FROM sqlite_master WHERE name LIKE 'llamatune%' ORDER BY name"
    with closing(sqlite3.connect(tmp_path / "study.db")) as made, closing(sqlite3.connect(":memory:")) as dumped:
        dumped.executescript((HERE / "study-v1.sql").read_text())
        assert schema.VERSION > 1 or _plain(made.execute(query)) == _plain(dumped.execute(query))


def _plain(rows: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(name, " ".join(sql.split())) for name, sql in rows]
