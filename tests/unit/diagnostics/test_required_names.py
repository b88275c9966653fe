"""A release of another package without what is used of its inside is refused at start-up."""

from __future__ import annotations

import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

from django_pooled.diagnostics import required_names
from django_pooled.diagnostics.required_names import (
    OLDEST,
    Need,
    UnsupportedRelease,
    changed_overrides,
    require,
)
from tests.support.next_release import VERSION, environment_with, next_release

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


def start_after(
    change: str, engine: str = "django_pooled", *, packages: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Start Django with the engine.

    Args:
        change: Code that is run before.
        engine: Which one.
        packages: A folder with packages in place of installed ones.
    """
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, change, engine],
        capture_output=True,
        text=True,
        check=False,
        env=None if packages is None else environment_with(packages),
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
        # What has names of its own that are needed.
        (
            "psycopg_pool.pool",
            "MaintenanceTask",
            "psycopg-pool 3.",
            "psycopg_pool.pool.MaintenanceTask (to give tasks to its threads)",
        ),
        (
            "psycopg._preparing",
            "PrepareManager.clear",
            "psycopg 3.",
            "PrepareManager.clear (to forget what DISCARD has removed)",
        ),
    ],
)
def test_the_engine_says_which_name_is_gone_and_what_it_was_for(
    module: str, path: str, package: str, purpose: str
) -> None:
    done = start_after(without(module, path))
    is_refused(done, package, purpose)


@pytest.mark.parametrize(
    ("package", "module", "told"),
    [
        ("psycopg", "_conninfo_utils", "psycopg 3."),
        ("psycopg", "client_cursor", "psycopg 3."),
        ("psycopg_pool", "pool", "psycopg-pool 3."),
        ("django.db.backends.postgresql", "psycopg_any", "django "),
    ],
)
def test_a_module_that_has_moved_is_said_too(package: str, module: str, told: str) -> None:
    # In place of "isn't an available database backend", which Django says of an ImportError.
    loaded = "import django.db.backends.postgresql.base, psycopg_pool, sys\n"
    moved = f"del sys.modules[{package!r}].{module}; sys.modules[{package + '.' + module!r}] = None"
    is_refused(start_after(loaded + moved), told, module)


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
    refusal = "django_pooled.diagnostics.required_names.UnsupportedRelease: "
    assert error.startswith(refusal + package), done.stderr
    assert purpose in error
    assert "Install an older" in error


def test_the_engine_starts_with_the_releases_that_are_installed() -> None:
    # A name that nobody needs, so that the program above is known to start without one.
    done = start_after(without("psycopg", "BINARY"))
    assert done.stdout == "postgresql\n", done.stderr


def test_a_newer_psycopg_pool_with_the_same_inside_is_taken(tmp_path: Path) -> None:
    done = start_after("", packages=next_release(tmp_path))
    assert done.stdout == "postgresql\n", done.stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            (r"\b_maybe_grow_pool\b", "_grow_pool"),
            "ConnectionPool._maybe_grow_pool (to decide when a connection is opened)",
        ),
        (
            (r"\b_lock\b", "_mutex"),
            "ConnectionPool._add_to_pool._lock (to guard its fields by a lock of ours)",
        ),
        (
            (r"\b_tasks\b", "_queue"),
            "ConnectionPool._start_workers._tasks (to give its threads a queue that takes no lock)",
        ),
        (
            (r"self\.attempt\b", "self.backoff"),
            "AddConnection.attempt (to know what a task is for)",
        ),
        (
            (r"task: MaintenanceTask, delay: float\)", "task: MaintenanceTask, *, after: float)"),
            "psycopg_pool.pool.Schedule(pool, task, delay) (to give tasks to its threads)",
        ),
        (
            (r"max_idle: float = ", "idle_time: float = "),
            "psycopg_pool.pool.ConnectionPool(connection_class=, open=, name=, ",
        ),
        (
            (r"(attempt: AttemptWithBackoff \| None, growing: bool = False)", r"\1, why: str = ''"),
            "ConnectionPool._add_connection(self, attempt: 'AttemptWithBackoff | None', "
            "growing: 'bool' = False, why: 'str' = '') -> 'None', "
            "replaced by PsycopgPool._add_connection(self, attempt: 'Any', growing: 'bool' = ",
        ),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
def test_a_newer_psycopg_pool_whose_inside_has_changed_is_refused_at_start_up(
    tmp_path: Path, change: tuple[str, str], words: str
) -> None:
    done = start_after("", packages=next_release(tmp_path, change))
    is_refused(done, f"psycopg-pool {VERSION}", words)


@pytest.mark.parametrize(
    ("before", "words"),
    [
        ("", "ConnectionPool._add_to_pool (to take a "),
        # A server would start without the engine.
        (
            "import sys; sys.modules['psycopg_pool.pool'] = None\n",
            "import of psycopg_pool.pool halted",
        ),
    ],
    ids=["a name", "a module"],
)
def test_a_server_with_the_app_does_not_start_with_it(
    tmp_path: Path, before: str, words: str
) -> None:
    packages = next_release(tmp_path, (r"\b_add_to_pool\b", "_keep"))
    if before:
        before = "import psycopg_pool; del psycopg_pool.pool\n" + before
    starts = (
        "import django\n"
        "from django.conf import settings\n"
        "settings.configure(INSTALLED_APPS=['django.contrib.contenttypes', 'django_pooled'],\n"
        "    DATABASES={'default': {'ENGINE': 'django_pooled', 'NAME': 'shop'}})\n"
        "django.setup()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", before + starts],
        capture_output=True,
        text=True,
        check=False,
        env=environment_with(packages),
    )
    is_refused(done, f"psycopg-pool {VERSION}", words)


@pytest.mark.parametrize(
    ("distribution", "version", "remedy"),
    [
        ("psycopg-pool", "3.2.7", "Install psycopg-pool 3.3 or later."),
        ("psycopg-pool", "3.3", "Install an older psycopg-pool, or a newer django_pooled"),
        ("psycopg", "3.2.3", "Install psycopg 3.2.4 or later."),
        ("psycopg", "3.10", "Install an older psycopg, or a newer django_pooled"),
        ("asgiref", "3.9", "Install an older asgiref, or a newer django_pooled"),
    ],
)
def test_the_remedy_depends_on_which_side_the_release_is(
    monkeypatch: pytest.MonkeyPatch, distribution: str, version: str, remedy: str
) -> None:
    monkeypatch.setattr(required_names, "version", lambda asked: version)
    with pytest.raises(UnsupportedRelease) as refusal:
        require(distribution, [Need(Theirs, "no_such", "have a test")])
    assert str(refusal.value).startswith(f"{distribution} {version} does not have what ")
    assert remedy in str(refusal.value)


def test_the_oldest_releases_are_those_that_are_installed_with_it() -> None:
    setup = ConfigParser()
    setup.read(Path(__file__).parents[3] / "setup.cfg", "utf-8")
    asked = [line.partition(",")[0] for line in setup["options"]["install_requires"].splitlines()]
    wanted = {name.lower(): oldest for name, _, oldest in (line.partition(">=") for line in asked)}
    assert OLDEST.items() <= wanted.items()


class Theirs:
    def move(self, conn: object, *, slowly: bool = False) -> None: ...
    def close(self, timeout: float = 5.0) -> None: ...
    def __len__(self, unit: str = "") -> int:
        return 0


class Ours:
    def move(self, conn: object, *, slowly: bool = False, far: bool = False) -> None: ...
    def close(self, *args: object, **kwargs: object) -> None: ...
    def __len__(self) -> int:
        return 1


class Renamed:
    def move(self, connection: object, *, slowly: bool = False) -> None: ...


class ByPosition:
    def close(self, timeout: float = 5.0, /) -> None: ...


class WithoutKeyword:
    def move(self, conn: object) -> None: ...


def test_a_method_that_takes_all_that_the_replaced_one_takes_is_in_order() -> None:
    assert list(changed_overrides(Ours, Theirs)) == []


@pytest.mark.parametrize(
    ("kind", "name"), [(Renamed, "move"), (ByPosition, "close"), (WithoutKeyword, "move")]
)
def test_a_method_that_does_not_take_what_the_replaced_one_takes_is_told(
    kind: type, name: str
) -> None:
    [told] = changed_overrides(kind, Theirs)
    assert told.startswith(f"Theirs.{name}(self, ")
    assert f"replaced by {kind.__name__}.{name}(self, " in told
