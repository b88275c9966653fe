"""What importing the engine costs a process before its first connection, counted and not timed."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = """
import json, re, sys
import django
from django.conf import settings

settings.configure(DATABASES={"default": {"ENGINE": "django_pooled", "NAME": "shop"}})
django.setup()
import django.db.backends.postgresql.base, psycopg_pool

before, real, compiled = set(sys.modules), re.compile, []


def noted(pattern, flags=0):
    compiled.append((sys._getframe(1).f_globals["__name__"], str(pattern)))
    return real(pattern, flags)


re.compile = noted
import django_pooled.base

loaded = sorted(set(sys.modules) - before)
from django_pooled.pool.backoff import Backoff
from django_pooled.pool.connector import Connector

Connector("default", Backoff(), patience=1.0, opened=print)
print(json.dumps([loaded, compiled, "tenacity" in sys.modules]))
"""

LATER = [
    # For decorated calls, for commands, for pages, and for what is named in settings.
    *("checks", "dashboard", "management", "metrics", "middleware", "poolctl", "poolstats"),
    *("replay", "retry", "streaming", "testing", "tokens", "urls", "views"),
    # For a process that connects: what a pool is made of, and what reports it.
    *("pool.pool", "pool.queue", "pool.opener", "pool.connector", "pool.connect_errors"),
    *("stats.answering_socket", "stats.combine", "stats.history", "stats.snapshot"),
    *("stats.socket_folder", "stats.standing_pause", "stats.trusted_folder"),
]


STARTS = """
import contextlib
import sys
import django
from django.conf import settings

NOWHERE = {"HOST": "127.0.0.1", "PORT": 1, "OPTIONS": {"pool": POOL}}
settings.configure(
    DATABASES={"default": {"ENGINE": "django_pooled", "NAME": "shop", **NOWHERE}},
    INSTALLED_APPS=["django_pooled"],
)
"""

Imported = tuple[list[str], list[tuple[str, str]], bool]


@pytest.fixture(scope="module")
def imported() -> Imported:
    """Import the engine in a process, and return the modules, the patterns, and what comes later.

    The modules that it loads beyond those of Django's backend and psycopg_pool; its patterns that
    it compiles; and whether tenacity is there once there is a pool to connect.
    """
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True
    )
    modules, patterns, is_prepared = json.loads(done.stdout)
    return modules, [(by, pattern) for by, pattern in patterns], is_prepared


@pytest.mark.parametrize("part", LATER)
def test_the_engine_is_imported_without(part: str, imported: Imported) -> None:
    name = f"django_pooled.{part}"
    assert [each for each in imported[0] if each == name or each.startswith(f"{name}.")] == []


def test_the_engine_brings_no_package_along(imported: Imported) -> None:
    known = {"django", "django_pooled", "psycopg", "psycopg_pool", *sys.stdlib_module_names}
    assert {each.partition(".")[0] for each in imported[0]} - known == set()


def test_no_pattern_is_compiled_before_it_is_used(imported: Imported) -> None:
    assert [each for each in imported[1] if each[0].startswith("django_pooled")] == []


def test_tenacity_is_there_before_a_connect_can_fail(imported: Imported) -> None:
    # An import opens files, and a connect may fail for want of file descriptors.
    assert imported[2]


# A checkout that fails makes a pool, too, tries to connect, and has the process report.
CHECKOUT = """
before = set(sys.modules)
from django.db import connection
from django_pooled import PoolError
from django_pooled.pool import registry

try:
    connection.ensure_connection()
except PoolError:
    registry.snapshots()
    ours = ("django_pooled.", "tenacity")
    print("imported:", *(name for name in set(sys.modules) - before if name.startswith(ours)))
"""


@pytest.mark.parametrize(
    ("start", "is_later"),
    [
        ("django.setup()", False),
        ("from django.core.management import execute_from_command_line as execute\n"
         "execute(['manage.py', 'version'])", True),
        ("from django.core.management import execute_from_command_line as execute\n"
         "with contextlib.suppress(SystemExit): execute(['manage.py', 'poolstats', '--help'])",
         False),
    ],
    ids=["a site", "a command of Django's", "another package's"],
)  # fmt: skip
def test_a_site_has_what_a_pool_is_made_of_before_its_first_request(
    start: str, is_later: bool, tmp_path: Path
) -> None:
    # A server that loads the site before it forks its workers has it once for all of them. And a
    # process that is forked while a thread imports would wait for that import for good.
    pool = {"timeout": 0.1, "stats_dir": str(tmp_path)}
    script = f"POOL = {pool!r}\n{STARTS}{start}\n{CHECKOUT}"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    name, *imported = done.stdout.splitlines()[-1].split()
    assert name == "imported:"
    assert ("django_pooled.pool.pool" in imported, "tenacity" in imported) == (is_later, is_later)
    assert is_later or not imported
