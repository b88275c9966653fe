"""A project without psycopg 3, or with psycopg2 beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[3]

SETTINGS = """
SECRET_KEY = "only for tests"
INSTALLED_APPS = ["django_pooled"]
POOLED = {"ENGINE": "django_pooled", "NAME": "shop"}
SQLITE = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
"""
# A model has the engine loaded, before any check or, since Django 6, by a check.
POOLED = "INSTALLED_APPS += ['django.contrib.contenttypes']\nDATABASES = {'default': POOLED}\n"
POOLED_BESIDE_ANOTHER = "DATABASES = {'default': SQLITE, 'shop': POOLED}\n"

WITHOUT_PSYCOPG = "import sys\nsys.modules['psycopg'] = None\n"


@pytest.fixture
def manage(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``manage.py check`` in a process of which a part has been prepared."""

    def run(databases: str, prelude: str = "", psycopg2: str | None = None) -> object:
        (tmp_path / "shop_settings.py").write_text(SETTINGS + databases, encoding="utf-8")
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


@pytest.mark.parametrize("psycopg2", [None, "# a driver that has no part in this"])
def test_the_engine_says_that_it_needs_psycopg_3(
    manage: Callable[..., subprocess.CompletedProcess[str]], psycopg2: str | None
) -> None:
    done = manage(POOLED, WITHOUT_PSYCOPG, psycopg2)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("django.core.exceptions.ImproperlyConfigured: ENGINE 'django_pooled'")
    assert "pip install 'psycopg[binary]'" in last


@pytest.mark.parametrize("psycopg2", [None, "# a driver that has no part in this"])
def test_e004_says_so_where_another_database_is_the_default(
    manage: Callable[..., subprocess.CompletedProcess[str]], psycopg2: str | None
) -> None:
    done = manage(POOLED_BESIDE_ANOTHER, WITHOUT_PSYCOPG, psycopg2)
    assert done.returncode == 1
    assert "(django_pooled.E004)" in done.stderr
    assert "No module named" in done.stderr or "import of psycopg halted" in done.stderr
    if psycopg2 is not None:
        assert "psycopg2 is installed" in done.stderr


def test_psycopg2_beside_psycopg_3_has_no_part_in_it(
    manage: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = manage(POOLED_BESIDE_ANOTHER, psycopg2="raise AssertionError('imported')")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "System check identified no issues (0 silenced).",
        "psycopg",
    ]
