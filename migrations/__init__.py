"""The schema's history, run by alembic.

Owns how a database of one version becomes a database of the next, for PostgreSQL and SQLite. Knows the tables and
nothing else; refuses to change a migration that has been released.
"""
