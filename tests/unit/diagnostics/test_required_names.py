"""A release of another package without what is used of its inside is refused at start-up."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from importlib import import_module
from django.conf import settings

module, path = sys.argv[1:]
owner = import_module(module)
*owners, name = path.split(".")
for step in owners:
    owner = getattr(owner, step)
delattr(owner, name)
settings.configure(DATABASES={"default": {"ENGINE": "django_pooled"}})
import django
django.setup()
from django.db import connection
print(connection.vendor)
"""


def start_without(module: str, path: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, module, path], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("module", "path", "package", "purpose"),
    [
        (
            "psycopg",
            "_connection_base.BaseConnection._start_query",
            "psycopg 3.",
            "Connection._start_query (to begin a transaction)",
        ),
        (
            "psycopg",
            "conninfo.timeout_from_conninfo",
            "psycopg 3.",
            "psycopg.conninfo.timeout_from_conninfo (to know the time limit of a connect)",
        ),
        (
            "django.db.backends.base.base",
            "BaseDatabaseWrapper._savepoint_rollback",
            "django ",
            "DatabaseWrapper._savepoint_rollback (to know how a transaction ends)",
        ),
        (
            "django.db.backends.postgresql.base",
            "ServerSideCursor",
            "django ",
            "base.ServerSideCursor (to have the connection see each statement)",
        ),
        (
            "psycopg_pool.pool",
            "Schedule",
            "psycopg-pool 3.",
            "psycopg_pool.pool.Schedule (to give tasks to its threads)",
        ),
        (
            "psycopg_pool.pool",
            "ConnectionPool._add_to_pool",
            "psycopg-pool 3.",
            "ConnectionPool._add_to_pool (to take a connection back)",
        ),
    ],
)
def test_the_engine_says_which_name_is_gone_and_what_it_was_for(
    module: str, path: str, package: str, purpose: str
) -> None:
    done = start_without(module, path)
    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    assert error.startswith("django.core.exceptions.ImproperlyConfigured: " + package), done.stderr
    assert purpose in error
    assert "Install an older" in error


def test_the_engine_starts_with_the_releases_that_are_installed() -> None:
    # A name that nobody needs, so that the program above is known to start without one.
    done = start_without("psycopg", "BINARY")
    assert done.stdout == "postgresql\n", done.stderr
