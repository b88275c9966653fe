"""A release of another package without what is used of its inside is refused at start-up."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from django.conf import settings

exec(sys.argv[1])
settings.configure(DATABASES={"default": {"ENGINE": sys.argv[2]}})
import django
django.setup()
from django.db import connection
print(connection.vendor)
"""


def start_after(change: str, engine: str = "django_pooled") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, change, engine], capture_output=True, text=True, check=False
    )


def without(module: str, path: str) -> str:
    return f"import {module}; del {module}.{path}"


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
    done = start_after(without(module, path))
    is_refused(done, package, purpose)


@pytest.mark.parametrize(
    ("change", "purpose"),
    [
        (
            "from django.db import transaction as tx; tx.non_atomic_requests = lambda view: view",
            "._non_atomic_requests (to keep views out of ATOMIC_REQUESTS)",
        ),
        (
            "from django.db import transaction; transaction.Atomic.__init__ = lambda *args: None",
            "Atomic._from_testcase (to run in the transaction of a TestCase)",
        ),
    ],
)
def test_an_attribute_that_django_sets_no_more_is_said_too(change: str, purpose: str) -> None:
    is_refused(start_after(change), "django ", purpose)


def is_refused(done: subprocess.CompletedProcess[str], package: str, purpose: str) -> None:
    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    assert error.startswith("django.core.exceptions.ImproperlyConfigured: " + package), done.stderr
    assert purpose in error
    assert "Install an older" in error


def test_the_engine_starts_with_the_releases_that_are_installed() -> None:
    # A name that nobody needs, so that the program above is known to start without one.
    done = start_after(without("psycopg", "BINARY"))
    assert done.stdout == "postgresql\n", done.stderr
