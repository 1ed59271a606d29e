"""Keeps studies: in memory, in SQLite or PostgreSQL. Knows no engine."""
