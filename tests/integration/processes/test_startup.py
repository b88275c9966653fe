"""Settings that cannot work end every server and worker as it starts, with no database at hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from embedded_postgres import free_port

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., subprocess.CompletedProcess[str]]

ROOT = Path(__file__).resolve().parents[3]

SETTINGS = """
SECRET_KEY = "only for tests"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "shop_urls"
INSTALLED_APPS = {apps!r}
MIDDLEWARE = {middleware!r}
POOLED = {{"ENGINE": "django_pooled", "NAME": "shop", "HOST": "127.0.0.1", "PORT": "1"}}
SQLITE = {{"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
DATABASES = {databases}
"""
APPLICATION = "from django.core import {kind}\napplication = {kind}.get_{kind}_application()\n"
FILES = {
    "shop_urls.py": "urlpatterns = []\n",
    "shop_wsgi.py": APPLICATION.format(kind="wsgi"),
    "shop_asgi.py": APPLICATION.format(kind="asgi"),
    "shop_celery.py": "import celery\napp = celery.Celery('shop', broker='memory://')\n",
}
AGE = "{'default': POOLED | {'CONN_MAX_AGE': None}}"
SECOND = "{'default': SQLITE, 'reports': POOLED | {'OPTIONS': {'pool': {'timeuot': 7.5}}}}"
REFUSALS = {
    AGE: "ImproperlyConfigured: Pooling doesn't support persistent connections. "
    "DATABASES['default']['CONN_MAX_AGE'] is None; expected 0",
    SECOND: "ImproperlyConfigured: DATABASES['reports']['OPTIONS']['pool']['timeuot'] = 7.5 is not",
}
APP = ["django_pooled"]
MODELS = ["django.contrib.contenttypes", "django.contrib.auth"]
MIDDLEWARE = ["django_pooled.middleware.DatabaseUnavailableMiddleware"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a command in a project of its own, until it ends."""

    def run(
        command: list[str], databases: str, apps: list[str], middleware: list[str]
    ) -> subprocess.CompletedProcess[str]:
        settings = SETTINGS.format(apps=apps, databases=databases, middleware=middleware)
        for name, text in {"shop_settings.py": settings, **FILES}.items():
            (tmp_path / name).write_text(text, encoding="utf-8")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("DJANGO_", "GUNICORN_"))}
        return subprocess.run(
            [sys.executable, "-m", *command],
            cwd=tmp_path,
            env={
                **kept,
                "DJANGO_SETTINGS_MODULE": "shop_settings",
                "HOME": str(tmp_path),
                "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]),
            },
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def gunicorn() -> list[str]:
    return ["gunicorn", f"--bind=127.0.0.1:{free_port()}", "--workers=2", "shop_wsgi"]


def uvicorn() -> list[str]:
    return ["uvicorn", f"--port={free_port()}", "--workers=1", "shop_asgi:application"]


def celery() -> list[str]:
    pytest.importorskip("celery", reason="celery is not installed")
    return ["celery", "-A", "shop_celery", "worker", "--concurrency=2"]


SERVERS = [gunicorn, uvicorn, celery]


@pytest.mark.parametrize("databases", [AGE, SECOND], ids=["age", "second database"])
@pytest.mark.parametrize("server", SERVERS)
def test_a_server_does_not_start_with_settings_that_cannot_work(
    run: Run, server: Callable[[], list[str]], databases: str
) -> None:
    done = run(server(), databases, APP, [])
    assert done.returncode != 0
    assert REFUSALS[databases] in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("server", "apps", "middleware"),
    [
        (gunicorn, MODELS, []),
        (uvicorn, MODELS, []),
        (celery, MODELS, []),
        (gunicorn, [], MIDDLEWARE),
        (uvicorn, [], MIDDLEWARE),
    ],
    ids=["wsgi models", "asgi models", "celery models", "wsgi middleware", "asgi middleware"],
)
def test_nor_without_the_app_where_models_or_the_middleware_load_the_engine(
    run: Run, server: Callable[[], list[str]], apps: list[str], middleware: list[str]
) -> None:
    done = run(server(), AGE, apps, middleware)
    assert done.returncode != 0
    assert REFUSALS[AGE] in done.stdout + done.stderr


def test_check_lists_every_database_and_shell_stays_usable(run: Run) -> None:
    both = AGE[:-1] + "," + SECOND.partition(",")[2]
    done = run(["django", "check"], both, [*APP, *MODELS], [])
    assert done.returncode == 1
    for refusal in REFUSALS.values():
        assert f"(django_pooled.E001) {refusal.partition(': ')[2]}" in done.stderr
    assert "Traceback" not in done.stderr
    done = run(["django", "shell", "--no-imports", "-c", "print(6 * 7)"], both, [*APP, *MODELS], [])
    assert (done.returncode, done.stdout) == (0, "42\n")


def test_migrate_is_refused_by_the_check(run: Run) -> None:
    done = run(["django", "migrate"], AGE, [*APP, *MODELS], [])
    assert done.returncode == 1
    assert "(django_pooled.E001) Pooling doesn't support" in done.stderr


def test_a_program_that_sets_django_up_is_refused(run: Run) -> None:
    done = run(["shop_wsgi"], SECOND, APP, [])
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("Did you mean 'timeout'?")


def test_right_settings_need_no_database_either(run: Run) -> None:
    fine = "{'default': POOLED | {'OPTIONS': {'pool': {'max_size': 3}, 'sslmode': 'prefer'}}}"
    done = run(["shop_wsgi"], fine, [*APP, *MODELS], MIDDLEWARE)
    assert (done.returncode, done.stderr) == (0, "")
