"""What docs/deploy says, as far as it can be tried here: signals, sockets, freezes, poolers."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.db import connections

from django_pooled import ConnectFailed
from tests.servers import pgbouncer
from tests.servers.postgresql import backend_count, backend_pids, kill_backends
from tests.sites.processes import serving
from tests.sites.workers import running
from tests.support.pools import query
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy
    from tests.sites.workers.running import Site
    from tests.support.pools import MakeDatabase, MakePool

NAME = "deployed"
GRACE = 10.0
"""Seconds from SIGTERM to SIGKILL on Cloud Run."""

needs_signals = pytest.mark.skipif(
    sys.platform == "win32", reason="processes cannot be stopped there"
)
needs_uwsgi = pytest.mark.skipif(
    not serving.uwsgi_program().exists(), reason="uWSGI is not installed"
)
needs_pgbouncer = pytest.mark.skipif(pgbouncer.PROGRAM is None, reason="PgBouncer is not installed")


@pytest.fixture(scope="module")
def database(server: EmbeddedServer) -> Iterator[str]:
    """The address of a database with the site's tables."""
    with running.database(server, NAME) as url:
        yield url


def serve(
    application: str, url: str, *options: str, **pool: object
) -> contextlib.AbstractContextManager[Site]:
    """Run the site under one of the application servers."""
    if application == "uvicorn":
        return running.uvicorn(url, *options, **pool)
    threads = ["--threads=4"] if application == "gthread" else []
    return running.gunicorn(url, f"--worker-class={application}", *threads, *options, **pool)


def probe(site: Site, path: str) -> tuple[int, str]:
    """Ask as an orchestrator does: over HTTP, and not for longer than a second or two."""
    with contextlib.closing(site.request(f"/health/{path}")) as connection:
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def can_make_process_one() -> bool:
    """Tell whether a process can be started that is number 1 of its own, as in a container."""
    unshare = shutil.which("unshare")
    return (
        unshare is not None
        and not subprocess.run(
            [unshare, "--pid", "--fork", "true"], capture_output=True, check=False
        ).returncode
    )


def children(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in found.split()]


def outcome(site: Site, path: str) -> str:
    """Return the body of an answer, or "cut off" where there was none."""
    try:
        return site.text(path)
    except (OSError, AssertionError):
        return "cut off"


# Probes.


@pytest.mark.parametrize("application", ["gthread", "uvicorn"])
def test_probes_tell_of_a_full_pool_an_outage_and_its_end(
    application: str,
    server: EmbeddedServer,
    proxy: FaultProxy,
    database: str,
) -> None:
    url = database.replace(f":{server.port}/", f":{proxy.port}/")
    # One thread more than connections, which is there for probes.
    options = ["--workers=1"] if application == "gthread" else []
    with serve(application, url, *options, max_size=3, timeout=5.0) as site:
        assert probe(site, "ready") == (
            200,
            '{"status": "ready", "databases": {"default": "ready"}}',
        )
        with ThreadPoolExecutor(3) as clients:
            answers = [clients.submit(site.get, "/slow/2") for _ in range(3)]
            wait_until(lambda: "busy" in probe(site, "ready")[1])
            assert probe(site, "ready")[0] == 200
            assert [answer.result()["result"] for answer in answers] == [2] * 3
        proxy.down()
        proxy.cut()
        wait_until(lambda: probe(site, "ready")[0] == 503)
        assert "server away" in probe(site, "ready")[1]
        assert probe(site, "live") == (200, '{"status": "alive"}')
        proxy.forward()
        wait_until(lambda: probe(site, "ready")[0] == 200)


def test_max_waiting_below_the_number_of_threads_leaves_one_for_probes_in_an_outage(
    server: EmbeddedServer, proxy: FaultProxy, database: str
) -> None:
    url = database.replace(f":{server.port}/", f":{proxy.port}/")
    with (
        serve("gthread", url, "--workers=1", max_waiting=3, timeout=60.0) as site,
        ThreadPoolExecutor(12) as clients,
    ):
        site.get("/double/1")
        proxy.down()
        proxy.cut()
        answers = [clients.submit(outcome, site, "/double/1") for _ in range(12)]
        # Nine are refused, and three of the four threads wait.
        wait_until(lambda: sum(answer.done() for answer in answers) == 9)
        for _ in range(5):
            started = time.monotonic()
            assert probe(site, "live")[0] == 200
            assert probe(site, "ready")[0] == 503
            assert time.monotonic() - started < 30.0
        proxy.forward()
        assert (
            sorted(answer.result() == "cut off" for answer in answers) == [False] * 3 + [True] * 9
        )


# The end.


@needs_signals
@pytest.mark.parametrize(
    ("application", "option"),
    [
        ("sync", "--graceful-timeout=1"),
        ("gthread", "--graceful-timeout=1"),
        ("uvicorn", "--timeout-graceful-shutdown=1"),
    ],
)
def test_a_process_that_is_out_of_time_leaves_and_the_server_notices(
    application: str,
    option: str,
    database: str,
    server: EmbeddedServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Without it, a statement of somebody who has gone runs to its end, and keeps its locks.
    monkeypatch.setenv("PGOPTIONS", "-c client_connection_check_interval=200ms")
    with serve(application, database, option) as site, ThreadPoolExecutor(1) as client:
        answer = client.submit(outcome, site, "/slow/60")
        wait_until(lambda: backend_count(server, NAME, state="active") == 1)
        started = time.monotonic()
        assert site.end(within=GRACE) in (0, -15)
        assert time.monotonic() - started >= 1.0
        assert answer.result() == "cut off"
        wait_until(lambda: backend_count(server, NAME, application_name="django %") == 0)


@pytest.mark.skipif(not can_make_process_one(), reason="no process may get a number 1 here")
def test_uvicorn_as_process_1_stays_until_its_last_thread_has_ended(
    database: str, server: EmbeddedServer, tmp_path: Path
) -> None:
    command = ["uvicorn", "--port=0", "--lifespan=off", "--timeout-graceful-shutdown=1"]
    site = running.Site(
        [
            "tests.integration.processes.test_deployment",
            *command,
            "tests.sites.workers.asgi:application",
        ],
        running.environment(database),
        tmp_path / "log",
    )
    try:
        with ThreadPoolExecutor(1) as client:
            answer = client.submit(outcome, site, "/slow/4")
            wait_until(lambda: backend_count(server, NAME, state="active") == 1)
            (uvicorn,) = wait_until(lambda: children(site.pid))
            started = time.monotonic()
            os.kill(uvicorn, signal.SIGTERM)
            site.process.wait(GRACE)
            # Long after its own limit of one second.
            assert time.monotonic() - started > 2.5
            assert answer.result() == "cut off"
    finally:
        site.kill()


@needs_signals
def test_a_process_leaves_in_time_while_requests_wait_for_a_server_that_is_away(
    database: str, server: EmbeddedServer, proxy: FaultProxy
) -> None:
    url = database.replace(f":{server.port}/", f":{proxy.port}/")
    with serve("uvicorn", url, "--timeout-graceful-shutdown=1", timeout=60.0) as site:
        site.get("/double/1")
        proxy.down()
        proxy.cut()
        with ThreadPoolExecutor(3) as clients:
            answers = [clients.submit(outcome, site, "/double/1") for _ in range(3)]
            wait_until(lambda: site.pools(1)[site.pid]["waiting"] == 3)
            assert site.end(within=GRACE) in (0, -15)
            assert {answer.result() for answer in answers} == {"cut off"}


@needs_uwsgi
@pytest.mark.parametrize(
    ("options", "finishes"),
    [([], False), (["--hook-master-start=unix_signal:15 gracefully_kill_them_all"], True)],
    ids=["die-on-term", "gracefully"],
)
def test_uwsgi_finishes_requests_at_sigterm_only_where_it_is_told_to(
    options: list[str], finishes: bool, database: str, server: EmbeddedServer
) -> None:
    starting = serving.uwsgi(database, "--enable-threads", "--threads=4", *options)
    with starting as site, ThreadPoolExecutor(1) as client:
        site.get("/double/1")
        answer = client.submit(outcome, site, "/slow/2")
        wait_until(lambda: backend_count(server, NAME, state="active") == 1)
        assert site.end(within=GRACE) == 0
        assert (answer.result() != "cut off") is finishes


# Cloud Run.


@pytest.fixture
def cloud_sql(make_server: Callable[..., EmbeddedServer]) -> Iterator[EmbeddedServer]:
    """A server on a Unix socket whose folder is named as Cloud Run names it."""
    folder = Path(tempfile.mkdtemp(prefix="cloudsql-", dir="/tmp"))
    socket = folder / "shop-123456:europe-west1:shop"
    socket.mkdir()
    for made in (folder, socket):
        made.chmod(0o777)
    yield make_server(settings={"unix_socket_directories": str(socket)})
    shutil.rmtree(folder)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no Unix sockets")
def test_a_token_is_fetched_for_each_connection_through_cloud_sql_s_socket(
    cloud_sql: EmbeddedServer, make_database: MakeDatabase
) -> None:
    role = "runner@shop-123456.iam"
    calls = []
    token = ""
    admin = psycopg.connect(**cloud_sql.parameters("postgres"), autocommit=True)

    def issue(new: str) -> None:
        nonlocal token
        token = new
        admin.execute(f"ALTER ROLE \"{role}\" PASSWORD '{new}'")

    def fetch() -> str:
        calls.append(token)
        return token

    with admin:
        admin.execute(f'CREATE ROLE "{role}" LOGIN')
        issue("first")
        alias = make_database(cloud_sql, max_size=3)
        connections.settings[alias].update(
            HOST=cloud_sql.settings["unix_socket_directories"], PORT="", USER=role, PASSWORD=fetch
        )
        # The socket's name holds the port, which on Cloud Run is the usual one.
        connections.settings[alias]["PORT"] = str(cloud_sql.port)
        assert ask(alias) == role
        assert calls == ["first"]
        issue("second")
        # A session outlives its token.
        assert ask(alias) == role
        assert calls == ["first"]
        kill_backends(cloud_sql, "postgres")
        admin.close()
        assert ask(alias) == role
        assert calls == ["first", "second"]


def ask(alias: str) -> Any:
    """Return who one is, within a request of its own."""
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT current_user WHERE inet_client_addr() IS NULL")
        (found,) = cursor.fetchone()
    connections[alias].close()
    return found


@needs_signals
def test_a_frozen_site_keeps_its_workers_and_answers_at_once_when_it_goes_on(
    make_server: Callable[..., EmbeddedServer],
) -> None:
    server = make_server(settings={"idle_session_timeout": "1s"})
    with (
        running.database(server, NAME) as url,
        # gunicorn takes workers that were frozen for longer than its --timeout for dead.
        serve("gthread", url, "--timeout=0", max_size=4) as site,
    ):
        site.get_all([f"/double/{n}" for n in range(40)])
        workers = set(site.at_rest(processes=2))
        os.killpg(site.pid, signal.SIGSTOP)
        try:
            wait_until(lambda: backend_count(server, NAME) == 0)
            time.sleep(1.0)  # Some time for which nothing runs, after the last session was cut.
        finally:
            os.killpg(site.pid, signal.SIGCONT)
        started = time.monotonic()
        assert site.get("/double/21")["result"] == 42
        assert time.monotonic() - started < 3.0
        assert probe(site, "ready")[0] == 200
        assert set(site.pools(2)) == workers
        assert "WORKER TIMEOUT" not in site.log


# PgBouncer.


@needs_pgbouncer
def test_in_transaction_mode_many_connections_of_pools_share_few_of_the_server(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    with pgbouncer.PgBouncer(server, "transaction") as bouncer:
        before = set(backend_pids(server, "postgres"))
        # Django prepares no statement unless told to; psycopg by itself does.
        address = {"host": bouncer.host, "port": bouncer.port, "prepare_threshold": None}
        pools = [make_pool(server, min_size=4, max_size=4, parameters=address) for _ in range(2)]
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(query, pools * 40))
        assert answers == [42] * 80
        assert sum(pool.gauges().size for pool in pools) == 8
        # PgBouncer's default_pool_size in these tests.
        assert len(set(backend_pids(server, "postgres")) - before) <= 3


@needs_pgbouncer
def test_in_session_mode_an_idle_pool_keeps_its_server_connections_from_all_others(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    with pgbouncer.PgBouncer(server, "session") as bouncer:
        address = {"host": bouncer.host, "port": bouncer.port}

        def configure(connection: psycopg.Connection[Any]) -> None:
            connection.execute("SELECT 1")

        one = make_pool(server, min_size=3, parameters=address, configure=configure)
        wait_until(lambda: one.gauges().idle == 3)
        other = make_pool(server, min_size=1, parameters=address, configure=configure, timeout=20.0)
        wait_until(lambda: other.snapshot().connecting == 1)
        with ThreadPoolExecutor(1) as thread:
            answer = thread.submit(query, other)
            wait_until(lambda: other.gauges().waiting == 1)
            assert not answer.done()
            assert other.gauges().size == 0
            one.close()
            assert answer.result(10.0) == 42


@needs_pgbouncer
def test_what_pgbouncer_does_not_take_at_login_is_refused_at_once(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    with pgbouncer.PgBouncer(server, "transaction") as bouncer:
        address = {"host": bouncer.host, "port": bouncer.port}
        options = {"options": "-c statement_timeout=5s"}
        pool = make_pool(server, parameters={**address, **options}, timeout=60.0)
        with pytest.raises(ConnectFailed, match="unsupported startup parameter"):
            query(pool)


if __name__ == "__main__":
    os.execvp(
        "unshare",
        ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-m", *sys.argv[1:]],
    )
