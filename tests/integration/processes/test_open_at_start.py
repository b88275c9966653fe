"""Pools are opened as a worker starts, and not by its parent, a command or any other program."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from embedded_postgres import free_port
from tests.servers.postgresql import backend_count
from tests.sites.processes import serving
from tests.sites.workers import running
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy

    Environment = Callable[..., dict[str, str]]

NAME = "at_start"
SIZE = 3
backends = partial(running.backends, NAME)
"""The backends of a process of the site, or of all."""

SETTINGS = """
import json, os, dj_database_url
SECRET_KEY = "only for tests"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "shop_urls"
INSTALLED_APPS = json.loads(os.environ["APPS"])
DATABASES = {
    "default": {
        **dj_database_url.parse(os.environ["DATABASE_URL"], engine="django_pooled"),
        "OPTIONS": {"pool": json.loads(os.environ["POOL"])},
    },
}
WSGI_APPLICATION = "shop_wsgi.application"
"""
URLS = """
import os
from django.http import HttpResponse
from django.urls import path
from django_pooled.health import readiness
urlpatterns = [
    path("pid", lambda request: HttpResponse(str(os.getpid()))),
    path("ready", readiness),
]
"""
GUNICORN = """
def post_worker_init(worker):
    from django_pooled.registry import open_at_start
    open_at_start()
"""
CELERY = """
import os
from pathlib import Path
from celery import Celery
from tests.sites.processes.celery_app import configuration
app = Celery("shop")
app.conf.update(configuration(Path(os.environ["FOLDER"])))
"""
FILES = {
    "shop_settings.py": SETTINGS,
    "shop_urls.py": URLS,
    "shop_wsgi.py": "from django.core import wsgi\napplication = wsgi.get_wsgi_application()\n",
    "shop_asgi.py": "from django.core import asgi\napplication = asgi.get_asgi_application()\n",
    "shop_early.py": "import django\ndjango.setup()\n"
    "from django.core import asgi\napplication = asgi.get_asgi_application()\n",
    "shop_linger.py": "import time\ntime.sleep(1)\n",
    "shop_script.py": "import django\ndjango.setup()\nimport shop_linger\n",
    "test_shop.py": "from shop_wsgi import application\nimport unittest\n"
    "class ATest(unittest.TestCase):\n    def test(self):\n        import shop_linger\n",
    "shop_lingering_wsgi.py": "from shop_wsgi import application\nimport shop_linger\n",
    "shop_gunicorn.py": GUNICORN,
    "shop_celery.py": CELERY,
}
SERVERS = {
    "gunicorn": ["gunicorn", "--workers=1", "--bind=127.0.0.1:0", "shop_wsgi"],
    "gunicorn gthread": [
        *("gunicorn", "--workers=1", "--threads=2", "--bind=127.0.0.1:0", "shop_wsgi"),
    ],
    "gunicorn gevent": [
        *("gunicorn", "--workers=1", "--worker-class=gevent", "--bind=127.0.0.1:0", "shop_wsgi"),
    ],
    "uvicorn": [*running.ASGI["uvicorn"], "shop_asgi:application"],
    "uvicorn early": [*running.ASGI["uvicorn"], "shop_early:application"],
    "uvicorn workers": [*running.ASGI["uvicorn"], "--workers=2", "shop_asgi:application"],
    "gunicorn asgi": [*running.ASGI["gunicorn"], "shop_asgi:application"],
    "daphne": [*running.ASGI["daphne"], "shop_asgi:application"],
    "hypercorn": [*running.ASGI["hypercorn"], "shop_asgi:application"],
    "granian": [*running.ASGI["granian"], "shop_asgi:application"],
    "runserver": ["django", "runserver"],
    "runserver noreload": ["django", "runserver", "--noreload"],
}
WITH_PORT = {"granian": "--port={}", "runserver": "127.0.0.1:{}", "runserver noreload": "{}"}
PROCESSES = {"uvicorn workers": 2}
WITH_PARENT = {
    *("gunicorn", "gunicorn gthread", "gunicorn gevent", "gunicorn asgi"),
    *("uvicorn workers", "runserver"),
}


@pytest.fixture(scope="module")
def database(server: EmbeddedServer) -> Iterator[str]:
    """The address of a database."""
    with running.database(server, NAME) as url:
        yield url


@pytest.fixture
def environment(database: str, tmp_path: Path) -> Environment:
    """Make the environment of the processes of a site in a folder of its own."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")

    def environment(apps: list[str] | None = None, **pool: Any) -> dict[str, str]:
        pool = {"min_size": SIZE, "open_at_start": True, "max_lifetime": 500.0, **pool}
        env = running.environment(pool.pop("url", database), **pool)
        return {
            **env,
            "APPS": json.dumps(["django_pooled"] if apps is None else apps),
            "DJANGO_SETTINGS_MODULE": "shop_settings",
            "FOLDER": str(tmp_path),
            "PYTHONPATH": os.pathsep.join([str(tmp_path), env["PYTHONPATH"]]),
        }

    return environment


def command_of(name: str) -> list[str]:
    command = SERVERS[name]
    pytest.importorskip(command[0], reason=f"{command[0]} is not installed")
    if name in WITH_PORT:
        # They do not tell which port they were given, or need one.
        command = [*command, WITH_PORT[name].format(free_port())]
    return command


def opened_by(server: EmbeddedServer, processes: int) -> set[str]:
    """Wait until so many processes have their connections; return their names."""
    names = "SELECT application_name, count(*) FROM pg_stat_activity WHERE datname = %s GROUP BY 1"

    def all_there() -> set[str] | None:
        with psycopg.connect(**server.parameters(), autocommit=True) as connection:
            found: dict[str, int] = dict(connection.execute(names, [NAME]).fetchall())
        is_full = len(found) == processes and set(found.values()) == {SIZE}
        return set(found) if is_full else None

    found = wait_until(all_there, what=f"{processes} processes with {SIZE} connections each")
    assert found is not None
    return found


def pids(names: set[str]) -> set[int]:
    return {int(re.findall(r"django (\d+)@", name)[0]) for name in names}


@pytest.mark.parametrize("name", SERVERS)
def test_each_worker_opens_its_pool_before_its_first_request(
    name: str, environment: Environment, server: EmbeddedServer
) -> None:
    processes = PROCESSES.get(name, 1)
    with running.serving(command_of(name), environment()) as site:
        workers = pids(opened_by(server, processes))
        assert int(site.text("/pid")) in workers
        if name in WITH_PARENT:
            assert site.pid not in workers
        assert "Traceback" not in site.log
    wait_until(lambda: backend_count(server, NAME) == 0)


def test_without_the_app_it_is_enough_that_a_model_loads_the_engine(
    environment: Environment, server: EmbeddedServer
) -> None:
    apps = ["django.contrib.contenttypes", "django.contrib.auth"]
    with running.serving(command_of("gunicorn"), environment(apps)):
        opened_by(server, 1)


def test_gunicorns_parent_opens_none_and_its_workers_do_with_one_line(
    environment: Environment, server: EmbeddedServer
) -> None:
    command = ["gunicorn", "--preload", "--workers=2", "--config=python:shop_gunicorn"]
    with running.serving([*command, "--bind=127.0.0.1:0", "shop_wsgi"], environment()) as site:
        workers = pids(opened_by(server, 2))
        assert site.pid not in workers
        assert int(site.text("/pid")) in workers


@pytest.mark.skipif(not serving.uwsgi_program().exists(), reason="uWSGI is not installed")
@pytest.mark.parametrize(
    "options",
    [["--master", "--processes=2"], ["--master", "--processes=2", "--lazy-apps"], []],
    ids=["forked", "lazy", "no master"],
)
def test_uwsgis_workers_open_theirs_and_its_parent_none(
    options: list[str], environment: Environment, server: EmbeddedServer
) -> None:
    command = ["tests.sites.processes.serving", f"--http-socket=127.0.0.1:{free_port()}"]
    command += ["--module=shop_wsgi", "--need-app", "--die-on-term", "--enable-threads"]
    with running.serving([*command, f"--virtualenv={sys.prefix}", *options], environment()) as site:
        workers = pids(opened_by(server, 2 if options else 1))
        assert (site.pid in workers) is (options == [])
        assert int(site.text("/pid")) in workers


@pytest.mark.parametrize("pool", ["prefork", "solo", "threads", "gevent"])
def test_each_process_of_a_celery_worker_that_runs_tasks_opens_its_pool(
    pool: str, environment: Environment, server: EmbeddedServer, tmp_path: Path
) -> None:
    pytest.importorskip("celery", reason="celery is not installed")
    for name in ("queue", "sent", "control"):
        (tmp_path / name).mkdir()
    command = ["celery", "-A", "shop_celery", "worker", "--concurrency=2", f"--pool={pool}"]
    env = {**environment(), "HOME": str(tmp_path)}
    site = running.Site(command, env, tmp_path / "log")
    try:
        workers = pids(opened_by(server, 2 if pool == "prefork" else 1))
        assert (site.pid in workers) is (pool != "prefork")
    finally:
        site.kill()
    assert "Traceback" not in site.log


@pytest.mark.parametrize(
    "command",
    [
        ["django", "shell", "--no-imports", "-c", "import shop_linger"],
        ["shop_script"],
        ["gunicorn", "--check-config", "shop_lingering_wsgi"],
        ["unittest", "test_shop"],
        ["pytest", "-p", "no:django", "test_shop.py"],
    ],
    ids=lambda command: command[0],
)
def test_nothing_that_does_not_serve_opens_a_pool(
    command: list[str], environment: Environment, server: EmbeddedServer, proxy: FaultProxy
) -> None:
    url = server.url(NAME).replace(f":{server.port}/", f":{proxy.port}/")
    env = environment(url=url)
    subprocess.run([sys.executable, "-m", *command], env=env, cwd=env["FOLDER"], check=True)
    assert proxy.connects() == []


def test_a_server_that_is_away_neither_ends_nor_delays_a_worker(
    environment: Environment, server: EmbeddedServer
) -> None:
    url = re.sub(r":\d+/", f":{free_port()}/", server.url(NAME))
    with running.serving(command_of("gunicorn"), environment(url=url)) as site:
        assert int(site.text("/pid"))
        request = site.request("/ready")
        answer = request.getresponse()
        assert (answer.status, json.loads(answer.read())["databases"]) == (
            503,
            {"default": "server away"},
        )
        request.close()
        assert "Traceback" not in site.log


def test_a_started_worker_is_ready_once_it_has_min_size(
    environment: Environment, server: EmbeddedServer
) -> None:
    with running.serving(command_of("uvicorn"), environment()) as site:
        wait_until(lambda: site.get("/ready")["status"] == "ready")
        assert backend_count(server, NAME) == SIZE
