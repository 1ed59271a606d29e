"""The tables of stored studies, and the way from older to newer ones: a numbered list of plain SQL.

A database has version ``v`` when the first ``v`` migrations have run; a new one is made by running all of them. A
released migration never changes: a new need is a new migration at the end. SQLite and PostgreSQL share this SQL.
"""

from __future__ import annotations

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        # ``revision`` rises with every change of the study or of one of its trials. Each trial has that of its last
        # change: a process that knows the study at one revision reads only newer trials. ``metric`` is null until it
        # is known. ``lease_owner`` is the worker that computes a suggestion; the others wait until ``lease_until``.
        # ``suggest_seconds`` is the time that the last suggestion took.
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
            lease_owner TEXT,
            lease_until DOUBLE PRECISION NOT NULL,
            suggest_seconds DOUBLE PRECISION NOT NULL
        )
        """,
        # Processes that run trials; times are the database's, in Unix seconds.
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
    (
        # A value that is null is nan. Curves that were written before this table stay in their trials' ``details``.
        """
        CREATE TABLE llamatune_points (
            study BIGINT NOT NULL,
            trial BIGINT NOT NULL,
            position BIGINT NOT NULL,
            revision BIGINT NOT NULL,
            step DOUBLE PRECISION NOT NULL,
            value DOUBLE PRECISION,
            progress DOUBLE PRECISION,
            PRIMARY KEY (study, trial, position)
        )
        """,
        "CREATE INDEX llamatune_points_revision ON llamatune_points (study, revision)",
    ),
    (
        # Snapshots of past studies, by the hash of their content, which studies name among their settings.
        "CREATE TABLE llamatune_past (key TEXT PRIMARY KEY, document TEXT NOT NULL)",
    ),
)

#: The version that this package writes.
VERSION = len(MIGRATIONS)
