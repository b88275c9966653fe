"""Test databases: Django's own, and a word to the threads that run tests in other processes."""

from __future__ import annotations

from typing import Any

from django.db.backends.postgresql.creation import DatabaseCreation as PostgreSQLCreation

from .unattended import note_tests

__all__ = ["DatabaseCreation"]


class DatabaseCreation(PostgreSQLCreation):
    """As Django's, but for what it is told by the parallel test runner."""

    def setup_worker_connection(self, *args: Any, **kwargs: Any) -> None:
        """As Django's, which calls it in each process that runs tests, in the thread that does."""
        note_tests()
        super().setup_worker_connection(*args, **kwargs)
