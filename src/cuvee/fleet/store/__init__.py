"""The run store: SQLite or PostgreSQL."""
