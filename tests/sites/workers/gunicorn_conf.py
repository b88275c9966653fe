"""What gunicorn's master does with the connection that it had before it forked."""

from __future__ import annotations

from typing import Any


def child_exit(server: Any, worker: Any) -> None:
    """Say in the log, whenever a worker has ended, which backend the master uses."""
    server.log.info("worker %d ended; master uses backend %d", worker.pid, _backend())


def on_exit(server: Any) -> None:
    """Say it once more, after the last worker."""
    server.log.info("all workers ended; master uses backend %d", _backend())


def _backend() -> int:
    # Imported with the configuration, before there are settings.
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (backend,) = cursor.fetchone()
    return int(backend)
