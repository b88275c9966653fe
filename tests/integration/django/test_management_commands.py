"""Django's own commands on our engine, beside the same on Django's."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import psycopg

from tests.sites.small.running import ENGINES, Runs

if TYPE_CHECKING:
    from pathlib import Path

    from embedded_postgres import EmbeddedServer

TEST = ("-W", "error", "-m", "django", "test", "--noinput", "-p", "cases.py", "tests.sites.small")


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
    assert ran(runs.python(*TEST, "--parallel=2")) == 7
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
