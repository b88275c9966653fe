"""A project without a package that the engine needs, or with psycopg2 beside psycopg 3."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    Manage = Callable[..., subprocess.CompletedProcess[str]]

ROOT = Path(__file__).resolve().parents[3]

SETTINGS = """
SECRET_KEY = "only for tests"
INSTALLED_APPS = ["django_pooled"]
ROOT_URLCONF = "shop_urls"
POOLED = {"ENGINE": "django_pooled", "NAME": "shop"}
SQLITE = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
"""
# A model has the engine loaded, before any check or, since Django 6, by a check.
POOLED = "INSTALLED_APPS += ['django.contrib.contenttypes']\nDATABASES = {'default': POOLED}\n"
POOLED_BESIDE_ANOTHER = "DATABASES = {'default': SQLITE, 'shop': POOLED}\n"


@pytest.fixture
def manage(tmp_path: Path) -> Manage:
    """Run ``manage.py check`` in a process of which a part has been prepared."""

    def run(databases: str, prelude: str = "", psycopg2: str | None = None) -> object:
        (tmp_path / "shop_settings.py").write_text(SETTINGS + databases, encoding="utf-8")
        (tmp_path / "shop_urls.py").write_text("urlpatterns = []\n", encoding="utf-8")
        if psycopg2 is not None:
            (tmp_path / "psycopg2.py").write_text(psycopg2, encoding="utf-8")
        script = "from django.core.management import execute_from_command_line as run\n"
        script += "run(['manage.py', 'check'])\nfrom django.db import connections\n"
        script += "print(connections['shop'].Database.__name__)\n" if "'shop'" in databases else ""
        return subprocess.run(
            [sys.executable, "-c", prelude + script],
            env={
                **os.environ,
                "DJANGO_SETTINGS_MODULE": "shop_settings",
                "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]),
            },
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run  # type: ignore[return-value]


PSYCOPG2 = "# a driver that has no part in this"


def without(package: str) -> str:
    return f"import sys\nsys.modules[{package!r}] = None\n"


@pytest.mark.parametrize(
    ("package", "title"),
    [("psycopg", "psycopg 3"), ("psycopg_pool", "psycopg_pool"), ("tenacity", "tenacity")],
)
@pytest.mark.parametrize("psycopg2", [None, PSYCOPG2])
class TestAPackageIsMissing:
    def test_the_engine_says_which(
        self, manage: Manage, package: str, title: str, psycopg2: str | None
    ) -> None:
        done = manage(POOLED, without(package), psycopg2)
        assert done.returncode == 1
        last = done.stderr.splitlines()[-1]
        assert last.startswith(
            f"django.core.exceptions.ImproperlyConfigured: django_pooled needs {title}: "
        )
        assert last.endswith(". pip install 'psycopg[binary]' psycopg-pool tenacity")

    def test_e004_says_which_where_another_database_is_the_default(
        self, manage: Manage, package: str, title: str, psycopg2: str | None
    ) -> None:
        done = manage(POOLED_BESIDE_ANOTHER, without(package), psycopg2)
        assert done.returncode == 1
        assert f"?: (django_pooled.E004) django_pooled needs {title}: import of " in done.stderr
        told_of_psycopg2 = "psycopg2 is installed, which it does not use" in done.stderr
        assert told_of_psycopg2 == (psycopg2 is not None and package == "psycopg")

    def test_a_server_does_not_start(
        self, manage: Manage, package: str, title: str, psycopg2: str | None
    ) -> None:
        script = "import django\ndjango.setup()\n"
        done = manage(POOLED_BESIDE_ANOTHER, without(package) + script, psycopg2)
        assert done.returncode == 1
        last = done.stderr.splitlines()[-1]
        assert last.startswith(
            f"django.core.exceptions.ImproperlyConfigured: django_pooled needs {title}: "
        )


# As with plain psycopg, which brings no libpq, on a system that has none either.
WITHOUT_LIBPQ = """
import ctypes.util, sys
sys.modules["psycopg_c"] = sys.modules["psycopg_binary"] = None
ctypes.util.find_library = lambda name: None
"""


class TestLibpqIsMissing:
    """psycopg 3 is there."""

    WORDS = (
        "django_pooled needs libpq, the client library of PostgreSQL, which psycopg 3 could not "
        "load: no pq wrapper available; couldn't import psycopg 'c' implementation: "
    )
    REMEDY = (
        "pip install 'psycopg[binary]', or, where that has no wheel for this Python, install the "
        "system's libpq (on Debian and Ubuntu libpq5)"
    )

    @pytest.mark.parametrize(
        ("databases", "script"),
        [(POOLED, ""), (POOLED_BESIDE_ANOTHER, "import django\ndjango.setup()\n")],
        ids=["the engine", "a server"],
    )
    def test_the_last_line_says_so(self, manage: Manage, databases: str, script: str) -> None:
        done = manage(databases, WITHOUT_LIBPQ + script)
        assert done.returncode == 1
        last = done.stderr.splitlines()[-1]
        assert last.startswith(f"django.core.exceptions.ImproperlyConfigured: {self.WORDS}")
        assert last.endswith(f"implementation: libpq library not found. {self.REMEDY}")

    def test_e004_says_so_where_another_database_is_the_default(self, manage: Manage) -> None:
        done = manage(POOLED_BESIDE_ANOTHER, WITHOUT_LIBPQ)
        assert done.returncode == 1
        assert f"?: (django_pooled.E004) {self.WORDS}" in done.stderr
        assert f"HINT: {self.REMEDY}; psycopg2 may stay for other packages.\n" in done.stderr

    def test_a_module_that_imports_what_retries_views_is_told_so(self, manage: Manage) -> None:
        urls = "from django_pooled.urls import retry_requests\nretry_requests([])\n"
        done = manage(POOLED_BESIDE_ANOTHER, WITHOUT_LIBPQ + urls)
        last = done.stderr.splitlines()[-1]
        assert last.startswith(f"django.core.exceptions.ImproperlyConfigured: {self.WORDS}")

    def test_an_implementation_that_was_asked_for_and_is_missing_is_named(
        self, manage: Manage
    ) -> None:
        done = manage(POOLED, f"{WITHOUT_LIBPQ}import os\nos.environ['PSYCOPG_IMPL'] = 'binary'\n")
        assert done.returncode == 1
        last = done.stderr.splitlines()[-1]
        assert "could not load: couldn't import requested psycopg 'binary' implementation: " in last
        assert last.endswith(f". {self.REMEDY}")


def test_psycopg2_beside_psycopg_3_has_no_part_in_it(
    manage: Manage,
) -> None:
    done = manage(POOLED_BESIDE_ANOTHER, psycopg2="raise AssertionError('imported')")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "System check identified no issues (0 silenced).",
        "psycopg",
    ]
