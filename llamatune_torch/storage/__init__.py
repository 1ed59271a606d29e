"""Where studies are kept: in memory, in SQLite or PostgreSQL. Knows no engine."""
