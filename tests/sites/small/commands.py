"""Runs one management command after another in a process, as ``manage.py`` runs each."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import django
from django.conf import settings
from django.core.management import call_command
from django.db import connections


def run(command: str, *arguments: str, **options: Any) -> str:
    """Run a command, show it and what it printed, and end the request as it were."""
    output = io.StringIO()
    call_command(command, *arguments, stdout=output, **options)
    connections.close_all()
    print(f"$ {command}", output.getvalue(), sep="\n", flush=True)  # noqa: T201
    return output.getvalue()


def main() -> None:
    django.setup()
    with connections["default"]._nodb_cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {settings.DATABASES['default']['NAME']}")
    run("check", databases=["default"])
    run("migrate", verbosity=0)
    run("migrate", "--check", verbosity=0)
    run("makemigrations", "--check", "--dry-run")
    run("sqlmigrate", "app", "0001")
    run("inspectdb")
    with tempfile.TemporaryDirectory() as folder:
        fixture = Path(folder, "counters.json")
        fixture.write_text('[{"model": "app.counter", "pk": 7, "fields": {"name": "loaded"}}]')
        run("loaddata", str(fixture))
        dumped = run("dumpdata", "app")
        run("flush", interactive=False)
        run("dumpdata", "app")
        fixture.write_text(dumped)
        run("loaddata", str(fixture))
    # psql writes to the process's own output.
    run("dbshell", "--", "--no-psqlrc", "--tuples-only", "-c", "SELECT name FROM app_counter")
    run("sqlflush")
    run("sqlsequencereset", "app")


if __name__ == "__main__":
    main()
