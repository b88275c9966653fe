"""What can be known of workers in advance, and what is wrong with it."""

from __future__ import annotations

import os
import subprocess
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from django.conf import settings as django_settings

from django_pooled.checks import check_workers, uwsgi_options
from django_pooled.checks.declared_processes import Workers, declared
from django_pooled.pool.options import PoolOptions
from tests.sites.processes import serving
from tests.sites.workers.running import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from django.core.checks import CheckMessage
    from pytest_django import Settings

SQLITE = "django.db.backends.sqlite3"
THREADED = {"UWSGI_MODULE": "shop.wsgi", "UWSGI_ENABLE_THREADS": "true"}


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the environment nor Celery tells of workers; uWSGI is not installed."""
    for name in list(os.environ):
        if name.startswith("UWSGI_") or name in ("WEB_CONCURRENCY", "GUNICORN_CMD_ARGS"):
            monkeypatch.delenv(name)
    if "celery._state" in sys.modules:
        monkeypatch.setattr("celery._state.default_app", None)
    monkeypatch.setattr(uwsgi_options, "has_threads_by_itself", lambda: False)
    pool = {"max_size": 4, "timeout": 5.0}
    monkeypatch.setitem(django_settings.DATABASES["default"], "OPTIONS", {"pool": pool})


def say(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def ids(messages: list[CheckMessage]) -> list[str]:
    for message in messages:
        assert message.hint, f"{message.id} has no hint"
    return [str(message.id).removeprefix("django_pooled.") for message in messages]


# What is known.


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, []),
        ({"WEB_CONCURRENCY": "4"}, [("WEB_CONCURRENCY", 4, None)]),
        ({"WEB_CONCURRENCY": "auto"}, []),
        ({"GUNICORN_CMD_ARGS": "--bind=:8000 --reload"}, []),
        ({"GUNICORN_CMD_ARGS": "-w 3 --threads=8"}, [("GUNICORN_CMD_ARGS", 3, 8)]),
        ({"GUNICORN_CMD_ARGS": "-w3 --workers=5"}, [("GUNICORN_CMD_ARGS", 5, None)]),
        ({"GUNICORN_CMD_ARGS": "--threads 8"}, [("GUNICORN_CMD_ARGS", 1, 8)]),
        (
            {"GUNICORN_CMD_ARGS": "--workers 2 --threads 8", "WEB_CONCURRENCY": "4"},
            [("GUNICORN_CMD_ARGS", 2, 8)],
        ),
        (
            {"GUNICORN_CMD_ARGS": "--threads 8", "WEB_CONCURRENCY": "4"},
            [("WEB_CONCURRENCY", 4, 8)],
        ),
        ({"UWSGI_VERSION": "2.0.26"}, []),
        ({"UWSGI_MODULE": "shop.wsgi"}, [("uWSGI's options", 1, 1)]),
        (
            {"UWSGI_WSGI_FILE": "wsgi.py", "UWSGI_PROCESSES": "6", "UWSGI_THREADS": "2"},
            [("uWSGI's options", 6, 2)],
        ),
        ({"UWSGI_MODULE": "shop.wsgi", "UWSGI_WORKERS": "%k"}, [("uWSGI's options", 1, 1)]),
        ({"UWSGI_INI": "/no/such/file"}, [("uWSGI's options", 1, None)]),
    ],
)
def test_workers_are_known_from_the_environment(
    environment: dict[str, str], expected: list[tuple[str, int, int | None]]
) -> None:
    assert declared(environment) == expected


def test_uwsgis_file_is_read_and_the_environment_goes_before_it(tmp_path: Path) -> None:
    path = tmp_path / "uwsgi.ini"
    path.write_text(
        "[shop]\nprocesses = 99\n[uwsgi]\n; a comment\nmodule = shop.wsgi\nplugin = python\n"
        "plugin = logfile\nprocesses = 4\n threads=2 \n[other]\nthreads = 99\n"
    )
    assert declared({"UWSGI_INI": str(path)}) == [("uWSGI's options", 4, 2)]
    environment = {"UWSGI_INI": str(path), "UWSGI_PROCESSES": "5"}
    assert declared(environment) == [("uWSGI's options", 5, 2)]


@pytest.mark.parametrize(
    ("worker", "expected"),
    [
        ({}, []),
        ({"CONCURRENCY": 4}, [("CELERY_WORKER_CONCURRENCY", 4, 1)]),
        ({"CONCURRENCY": 4, "POOL": "prefork"}, [("CELERY_WORKER_CONCURRENCY", 4, 1)]),
        ({"CONCURRENCY": 50, "POOL": "threads"}, [("CELERY_WORKER_CONCURRENCY", 1, 50)]),
        ({"CONCURRENCY": 50, "POOL": "gevent"}, [("CELERY_WORKER_CONCURRENCY", 1, 50)]),
        ({"CONCURRENCY": 0}, []),
        ({"CONCURRENCY": "4"}, []),
    ],
)
def test_workers_are_known_from_celerys_settings(
    settings: Settings, worker: dict[str, Any], expected: list[tuple[str, int, int | None]]
) -> None:
    for name, value in worker.items():
        setattr(settings, f"CELERY_WORKER_{name}", value)
    assert declared({}) == expected


@pytest.mark.parametrize(
    ("threads", "options", "expected"),
    [
        (None, {"max_size": 10}, 10),
        (4, {"max_size": 10}, 4),
        (40, {"max_size": 10}, 10),
        (1, {"max_size": 10, "min_size": 3}, 3),
    ],
)
def test_a_process_opens_as_many_connections_as_it_has_use_for(
    threads: int | None, options: dict[str, int], expected: int
) -> None:
    assert Workers("", 1, threads).connections(PoolOptions(**options)) == expected  # type: ignore[arg-type]


# I001: threads and max_size.


def test_i001_tells_of_more_threads_than_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--threads 5")
    [message] = check_workers()
    assert ids([message]) == ["I001"]
    assert "has 5 threads" in message.msg
    assert "DATABASES['default'] at most 4" in message.msg


@pytest.mark.parametrize(
    "environment",
    [{}, {"WEB_CONCURRENCY": "9"}, {"GUNICORN_CMD_ARGS": "-w 9 --threads 4"}, THREADED],
)
def test_i001_is_silent_where_each_thread_may_have_a_connection(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    say(monkeypatch, environment)
    assert ids(check_workers()) == []


def test_i001_is_silent_in_transaction_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--threads 5")
    pool = {"max_size": 4, "pool_mode": "transaction"}
    monkeypatch.setitem(django_settings.DATABASES["default"], "OPTIONS", {"pool": pool})
    assert ids(check_workers()) == []


def test_workers_of_a_site_without_pools_are_left_in_peace(monkeypatch: pytest.MonkeyPatch) -> None:
    say(monkeypatch, {"GUNICORN_CMD_ARGS": "--threads 5", "UWSGI_MODULE": "shop.wsgi"})
    assert ids(check_workers()) == ["W006", "I001"]
    monkeypatch.setitem(
        django_settings.DATABASES["default"], "ENGINE", "django.db.backends.sqlite3"
    )
    assert ids(check_workers()) == []


# W006: uWSGI without threads.


@pytest.mark.parametrize(
    "environment",
    [
        {"UWSGI_MODULE": "shop.wsgi", "UWSGI_PROCESSES": "2"},
        {"UWSGI_WSGI_FILE": "wsgi.py", "UWSGI_ENABLE_THREADS": "false"},
    ],
)
def test_w006_tells_of_uwsgi_without_threads(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    say(monkeypatch, environment)
    assert ids(check_workers()) == ["W006"]


@pytest.mark.parametrize(
    "environment",
    [
        THREADED,
        {"UWSGI_MODULE": "shop.wsgi", "UWSGI_THREADS": "2"},
        {"UWSGI_VERSION": "2.0.26"},
        # More options may be there.
        {"UWSGI_MODULE": "shop.wsgi", "UWSGI_INCLUDE": "more.ini"},
        {"UWSGI_INI": "/no/such/file"},
    ],
)
def test_w006_is_silent_where_uwsgi_has_threads_or_may_have_them(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    say(monkeypatch, environment)
    assert ids(check_workers()) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[uwsgi]\nmodule = shop.wsgi\n", ["W006"]),
        ("[uwsgi]\nmodule = shop.wsgi\nenable-threads = true\n", []),
        ("[uwsgi]\nmodule = shop.wsgi\nini = more.ini\n", []),
    ],
)
def test_w006_reads_the_file_that_uwsgi_will_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, expected: list[str]
) -> None:
    (tmp_path / "uwsgi.ini").write_text(text)
    monkeypatch.setenv("UWSGI_INI", str(tmp_path / "uwsgi.ini"))
    assert ids(check_workers()) == expected


@pytest.mark.parametrize("package", ["uWSGI", "pyuwsgi"])
@pytest.mark.parametrize(
    ("version", "expected"), [("2.0.30", False), ("2.0.31", True), ("2.1", True)]
)
def test_w006_knows_the_uwsgi_that_enables_threads_by_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str, version: str, expected: bool
) -> None:
    monkeypatch.undo()
    folder = tmp_path / f"{package}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
    )
    say(monkeypatch, {"UWSGI_MODULE": "shop.wsgi"})
    # Alone, since the other one may be installed here.
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert uwsgi_options.has_threads_by_itself() is expected
    assert ("W006" in ids(check_workers())) is not expected


def test_a_uwsgi_that_is_not_installed_for_this_python_may_be_an_old_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert not uwsgi_options.has_threads_by_itself()


@pytest.mark.parametrize(("has_threads", "expected"), [(False, ["W006"]), (True, [])])
def test_w006_knows_what_uwsgi_tells_its_own_processes(
    monkeypatch: pytest.MonkeyPatch, has_threads: bool, expected: list[str]
) -> None:
    uwsgi = ModuleType("uwsgi")
    uwsgi.has_threads = has_threads  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "uwsgi", uwsgi)
    assert ids(check_workers()) == expected


@pytest.mark.skipif(
    not serving.uwsgi_can_do_without_threads(),
    reason="needs a uWSGI that has threads only with --enable-threads",
)
@pytest.mark.parametrize(("option", "expected"), [("--master", True), ("--enable-threads", False)])
def test_w006_is_what_a_check_inside_uwsgi_says(
    tmp_path: Path, option: str, expected: bool
) -> None:
    script = tmp_path / "check.py"
    script.write_text(
        "import os, django\ndjango.setup()\nfrom django_pooled.checks import check_workers\n"
        "print('found', [message.id for message in check_workers()], flush=True)\n"
    )
    done = subprocess.run(
        [
            *(serving.uwsgi_program(), option, f"--virtualenv={sys.prefix}", "--die-on-term"),
            *(f"--pythonpath={ROOT}", f"--pyrun={script}", "--http-socket=127.0.0.1:0"),
        ],
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    output = done.stdout + done.stderr
    assert "found [" in output, output
    assert ("found ['django_pooled.W006']" in output) is expected
