"""The tables of a stored study, and how older ones become newer ones: a numbered list of plain SQL.

A database is of version ``v`` when the first ``v`` migrations have run; a new one is made by running all of them. What
has been released never changes: a new need is a new migration at the end. The SQL is what SQLite and PostgreSQL share.
"""

from __future__ import annotations

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        # ``revision`` rises with every change of the study or of one of its trials, which carry the one they were last
        # changed in: whoever knows the study at one revision reads only what is newer. ``metric`` is null until it is
        # known. ``asking`` is who computes a suggestion, until when others had better wait, and how long it took last.
        """
        CREATE TABLE llamatune_studies (
            id BIGINT PRIMARY KEY,
            name TEXT NOT NULL UNIQUE,
            space TEXT NOT NULL,
            direction TEXT NOT NULL,
            metric TEXT,
            initial_points TEXT NOT NULL,
            settings TEXT NOT NULL,
            revision BIGINT NOT NULL,
            asking TEXT,
            asking_until DOUBLE PRECISION NOT NULL,
            ask_seconds DOUBLE PRECISION NOT NULL
        )
        """,
        # Whoever runs trials; times are the database's, in Unix seconds.
        """
        CREATE TABLE llamatune_workers (
            id TEXT PRIMARY KEY,
            host TEXT NOT NULL,
            pid BIGINT NOT NULL,
            started DOUBLE PRECISION NOT NULL,
            heartbeat DOUBLE PRECISION NOT NULL
        )
        """,
        """
        CREATE TABLE llamatune_trials (
            study BIGINT NOT NULL REFERENCES llamatune_studies (id),
            number BIGINT NOT NULL,
            revision BIGINT NOT NULL,
            state TEXT NOT NULL,
            origin TEXT NOT NULL,
            value DOUBLE PRECISION,
            params TEXT NOT NULL,
            worker TEXT,
            retry_of BIGINT,
            details TEXT NOT NULL,
            PRIMARY KEY (study, number)
        )
        """,
        "CREATE INDEX llamatune_trials_revision ON llamatune_trials (study, revision)",
        "CREATE INDEX llamatune_trials_state ON llamatune_trials (study, state)",
    ),
)

#: The version that this package writes.
VERSION = len(MIGRATIONS)
