"""What ``check --database`` asks of servers: real ones, with limits, time-outs and poolers."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psycopg
import pytest
from django.core.checks.database import check_database_backends
from django.db import ProgrammingError, connections
from django.db.transaction import atomic

from django_pooled import registry
from django_pooled.backend.parameters import server_of
from django_pooled.checks import server as server_checks
from django_pooled.checks.server_facts import ask_server
from django_pooled.poolstats.server.probe import NoAnswer, Probe
from django_pooled.stats import publisher
from embedded_postgres import free_port
from tests.servers import pgbouncer
from tests.servers.emulated_servers import EMULATIONS
from tests.servers.postgresql import backend_count, versions
from tests.support.publisher import Publisher
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django.core.checks import CheckMessage
    from pytest_django import Settings

    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy
    from tests.servers.postgresql import Servers
    from tests.support.pools import MakeDatabase

ROOT = Path(__file__).resolve().parents[3]
PASSWORD = "only for tests"
PREPARING = {"server_side_binding": True, "prepare_threshold": 0}


KNOWS_RESERVED_CONNECTIONS = int(versions()[-1]) >= 16
RESERVED = (
    {"reserved_connections": "4"}
    if KNOWS_RESERVED_CONNECTIONS
    else {"superuser_reserved_connections": "7"}
)
"""Seven connections that an ordinary role does not get."""


@pytest.fixture(scope="module")
def server(servers: Servers) -> Iterator[EmbeddedServer]:
    """A server with few connections and two kinds of reserved ones, on which nobody else is."""
    made = servers.make(settings={"max_connections": "30", **RESERVED})
    made.start()
    yield made
    servers.remove(made)


@pytest.fixture(autouse=True)
def nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other database on the same server, and nothing that tells of processes."""
    monkeypatch.setitem(connections.settings["default"], "HOST", "elsewhere.invalid")
    for name in list(os.environ):
        if name.startswith("UWSGI_") or name in ("WEB_CONCURRENCY", "GUNICORN_CMD_ARGS"):
            monkeypatch.delenv(name)
    if "celery._state" in sys.modules:
        monkeypatch.setattr("celery._state.default_app", None)


def check(alias: str) -> list[CheckMessage]:
    """Run what ``manage.py check --database`` runs."""
    messages: list[CheckMessage] = check_database_backends(databases=[alias])
    for message in messages:
        assert message.hint, f"{message.id} has no hint"
        assert alias in message.msg or message.id == "django_pooled.I002"
    return messages


def ids(alias: str) -> list[str]:
    return [str(message.id).removeprefix("django_pooled.") for message in check(alias)]


def administer(server: EmbeddedServer, *statements: str) -> None:
    with psycopg.connect(**server.parameters("postgres"), autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


@pytest.fixture
def clerk(server: EmbeddedServer) -> str:
    """A role without privileges and without a limit."""
    administer(
        server, "DROP ROLE IF EXISTS clerk", f"CREATE ROLE clerk LOGIN PASSWORD '{PASSWORD}'"
    )
    return "clerk"


def log_in_as(role: str, alias: str) -> None:
    connections.settings[alias].update(USER=role, PASSWORD=PASSWORD)


@contextlib.contextmanager
def sessions(server: EmbeddedServer, *names: str) -> Iterator[None]:
    """Sessions of these names, as processes on other hosts would have."""
    with contextlib.ExitStack() as stack:
        for name in names:
            parameters = {**server.parameters("postgres"), "application_name": name}
            stack.enter_context(psycopg.connect(**parameters))
        yield


# How it asks.


def test_a_server_in_order_is_silent(server: EmbeddedServer, make_database: MakeDatabase) -> None:
    assert ids(make_database(server)) == []


def test_the_oldest_server_in_order_is_silent(
    make_server: Callable[..., EmbeddedServer], make_database: MakeDatabase
) -> None:
    alias = make_database(make_server(versions()[0]), max_size=60)
    assert ids(alias) == []
    connections.settings[alias]["OPTIONS"]["pool"]["max_size"] = 61
    assert ids(alias) == ["W010"]


def test_one_connection_is_opened_and_closed_and_no_pool(
    server: EmbeddedServer,
    make_proxy: Callable[[EmbeddedServer], FaultProxy],
    make_database: MakeDatabase,
) -> None:
    proxy = make_proxy(server)
    alias = make_database(server, through=proxy)
    assert ids(alias) == []
    assert len(proxy.connects()) == 1
    assert [pool for pool in registry.snapshots() if pool.alias == alias] == []
    wait_until(lambda: backend_count(server, "postgres", application_name="django check") == 0)


def test_w009_tells_of_a_server_that_is_away(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server)
    connections.settings[alias]["PORT"] = free_port()
    [message] = check(alias)
    assert message.id == "django_pooled.W009"
    assert "refused" in message.msg
    assert not message.is_serious()


def test_w009_tells_of_a_server_that_does_not_answer_in_time(
    server: EmbeddedServer,
    make_proxy: Callable[[EmbeddedServer], FaultProxy],
    make_database: MakeDatabase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_checks, "TIMEOUT", 0.3)
    proxy = make_proxy(server)
    alias = make_database(server, through=proxy)
    proxy.deaf()
    [message] = check(alias)
    assert message.id == "django_pooled.W009"
    assert "nothing came within 0.3 s" in message.msg


def test_a_question_that_fails_costs_the_connection_and_can_be_asked_again(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    backends: list[int] = []

    def question(connection: psycopg.Connection[Any]) -> int:
        backends.append(connection.info.backend_pid)
        row = connection.execute("SELECT 6 / %s::int", [len(backends) - 1]).fetchone()
        assert row is not None
        return int(row[0])

    probe = Probe(connections[make_database(server)], question, "django check")
    with contextlib.closing(probe):
        probe.start(3.0)
        with pytest.raises(NoAnswer, match="division by zero"):
            probe.wait(3.0)
        answers = []
        for _ in range(2):
            probe.start(3.0)
            answers.append(probe.wait(3.0))
    assert answers == [6, 3]
    assert backends[0] != backends[1] == backends[2]


def test_a_question_that_is_still_open_is_not_asked_twice(
    server: EmbeddedServer,
    make_proxy: Callable[[EmbeddedServer], FaultProxy],
    make_database: MakeDatabase,
) -> None:
    proxy = make_proxy(server)
    proxy.deaf()
    probe = Probe(connections[make_database(server, through=proxy)], ask_server, "django check")
    for _ in range(2):
        probe.start(0.2)
        with pytest.raises(NoAnswer, match=r"nothing came within 0\.2 s"):
            probe.wait(0.2)
    assert len(proxy.connects()) == 1
    probe.close()


def test_w009_tells_of_settings_that_no_connection_can_be_made_of(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server)
    connections.settings[alias]["NAME"] = ""
    [message] = check(alias)
    assert message.id == "django_pooled.W009"
    assert "supply the NAME" in message.msg


def test_e001_comes_from_the_backend_where_the_app_is_missing(
    server: EmbeddedServer, make_database: MakeDatabase, settings: Settings
) -> None:
    alias = make_database(server, max_sise=4)
    assert ids(alias) == []  # The app's own check says it.
    settings.INSTALLED_APPS = ["django.contrib.contenttypes"]
    assert ids(alias) == ["I002", "E001"]


def test_a_database_without_a_pool_is_not_asked(
    make_database: MakeDatabase, server: EmbeddedServer
) -> None:
    alias = make_database(server)
    connections.settings[alias]["OPTIONS"]["pool"] = False
    connections.settings[alias]["PORT"] = free_port()
    assert ids(alias) == []


def test_i002_tells_what_is_missing_without_the_app(
    server: EmbeddedServer, make_database: MakeDatabase, settings: Settings
) -> None:
    alias = make_database(server)
    settings.INSTALLED_APPS = ["django.contrib.contenttypes"]
    assert ids(alias) == ["I002"]


@pytest.mark.parametrize(
    ("apps", "options", "port", "words"),
    [
        (["django_pooled"], ["--database=default"], None, "System check identified no issues"),
        ([], ["--database=default"], None, "?: (django_pooled.I002)"),
        ([], ["--database=default"], 1, "?: (django_pooled.W009)"),
        ([], [], 1, "System check identified no issues"),
    ],
)
def test_manage_py_check_asks_the_server_only_where_told_to(
    server: EmbeddedServer,
    tmp_path: Path,
    apps: list[str],
    options: list[str],
    port: int | None,
    words: str,
) -> None:
    database = {"ENGINE": "django_pooled", **server.django_settings(), "NAME": "postgres"}
    if port is not None:
        database["PORT"] = port
    (tmp_path / "shop_settings.py").write_text(
        f"import json\nSECRET_KEY = 'x'\nINSTALLED_APPS = {apps}\n"
        f"DATABASES = {{'default': json.loads({json.dumps(database)!r})}}\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "django", "check", "--settings=shop_settings", *options],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert words in done.stdout + done.stderr


# W010: connections that all processes may open, and limits.


@pytest.mark.parametrize(
    ("privilege", "admitted"),
    [
        ("", 30 - 3 - 4),
        pytest.param(
            "GRANT pg_use_reserved_connections TO clerk",
            30 - 3,
            marks=pytest.mark.skipif(
                not KNOWS_RESERVED_CONNECTIONS, reason="PostgreSQL has it since 16"
            ),
        ),
        ("ALTER ROLE clerk SUPERUSER", 30),
    ],
)
def test_w010_compares_one_process_with_what_the_server_admits_to_the_role(
    server: EmbeddedServer, make_database: MakeDatabase, clerk: str, privilege: str, admitted: int
) -> None:
    if privilege:
        administer(server, privilege)
    alias = make_database(server, max_size=admitted)
    log_in_as(clerk, alias)
    assert ids(alias) == []
    connections.settings[alias]["OPTIONS"]["pool"]["max_size"] = admitted + 1
    [message] = check(alias)
    assert message.id == "django_pooled.W010"
    assert f"one process, with max_size {admitted + 1}, may open" in message.msg
    assert f"the server admits {admitted} (max_connections is 30" in message.msg
    assert ("reserved" in message.msg) == (admitted < 30)


def test_w010_compares_with_the_roles_limit(
    server: EmbeddedServer, make_database: MakeDatabase, clerk: str
) -> None:
    administer(server, "ALTER ROLE clerk CONNECTION LIMIT 5")
    alias = make_database(server, max_size=5)
    log_in_as(clerk, alias)
    assert ids(alias) == []
    connections.settings[alias]["OPTIONS"]["pool"]["max_size"] = 6
    [message] = check(alias)
    assert message.id == "django_pooled.W010"
    assert "the role 'clerk' may have 5" in message.msg


def test_w010_compares_with_the_databases_limit(
    server: EmbeddedServer, make_database: MakeDatabase, clerk: str
) -> None:
    administer(server, "DROP DATABASE IF EXISTS small", "CREATE DATABASE small CONNECTION LIMIT 5")
    alias = make_database(server, max_size=6)
    connections.settings[alias]["NAME"] = "small"
    assert ids(alias) == []  # A superuser is under no such limit.
    log_in_as(clerk, alias)
    [message] = check(alias)
    assert message.id == "django_pooled.W010"
    assert "the database 'small' admits 5" in message.msg
    connections.settings[alias]["OPTIONS"]["pool"]["max_size"] = 5
    assert ids(alias) == []


def test_w010_adds_up_the_databases_that_share_a_limit(
    server: EmbeddedServer, make_database: MakeDatabase, clerk: str
) -> None:
    administer(server, "ALTER ROLE clerk CONNECTION LIMIT 5")
    one, other = (make_database(server, max_size=3) for _ in range(2))
    log_in_as(clerk, one)
    assert ids(one) == []  # The other one has another role.
    log_in_as(clerk, other)
    [message] = check(one)
    assert "with max_size 3 + 3, may open 6 connections" in message.msg
    # The same server by another name is another server, as far as settings tell.
    connections.settings[other]["HOST"] = "localhost"
    assert ids(one) == []


def test_w010_counts_the_processes_that_settings_name(
    server: EmbeddedServer, make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    alias = make_database(server, max_size=10)
    monkeypatch.setenv("WEB_CONCURRENCY", "3")
    assert ids(alias) == []
    monkeypatch.setenv("WEB_CONCURRENCY", "4")
    [message] = check(alias)
    assert message.id == "django_pooled.W010"
    assert "4 processes (WEB_CONCURRENCY) may open 40 connections" in message.msg
    # A process has no use for more connections than it has threads.
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--threads 2")
    assert ids(alias) == []


def test_w010_counts_the_processes_that_postgresql_sees_now(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server, max_size=10)
    names = [f"django {pid}@web-{pid}" for pid in (1, 2, 3)]
    # Two sessions of one process, and one that is nobody's pool.
    with sessions(server, *names, names[0], "psql", "django poolstats"):
        assert ids(alias) == []
        with sessions(server, "django 4@web-4"):
            [message] = check(alias)
    assert message.id == "django_pooled.W010"
    assert "4 processes with a pool, as there are now, may open 40 connections" in message.msg


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no Unix sockets")
def test_w010_asks_the_processes_of_this_host_for_their_own_max_size(
    server: EmbeddedServer, make_database: MakeDatabase, stats_dir: Path
) -> None:
    publisher.stop()
    alias = make_database(server, max_size=10, stats_dir=str(stats_dir))
    place = server_of(connections[alias].settings_dict)
    mine = {"alias": alias, "server": place, "max_size": 31}
    elsewhere = {**mine, "server": "another:5432/shop"}
    with contextlib.closing(Publisher(stats_dir, {**mine, "alias": "another"}, elsewhere)):
        assert ids(alias) == []
        with contextlib.closing(Publisher(stats_dir, mine)):
            [message] = check(alias)
            assert "1 process with a pool, as there are now, may open 31" in message.msg
            connections.settings[alias]["OPTIONS"]["pool"]["stats_dir"] = False
            assert ids(alias) == []


# W011: time-outs of the server.


@pytest.mark.parametrize(
    ("limit", "pool", "expected"),
    [
        ("60s", {"min_size": 0, "max_idle": 600.0}, ["W011"]),
        ("60s", {"min_size": 0, "max_idle": 60.0}, []),
        ("60s", {"min_size": 1, "max_idle": 30.0}, ["W011"]),
        ("60s", {"min_size": 1, "max_lifetime": 60.0}, []),
        ("60s", {"min_size": 1, "keepalive": 30.0}, []),
        ("60s", {"min_size": 1, "keepalive": 60.0}, ["W011"]),
        ("0", {"min_size": 0}, []),
    ],
)
def test_w011_tells_of_a_server_that_ends_sessions_before_the_pool_does(
    server: EmbeddedServer,
    make_database: MakeDatabase,
    limit: str,
    pool: dict[str, Any],
    expected: list[str],
) -> None:
    options = {"options": f"-c idle_session_timeout={limit}"}
    alias = make_database(server, options=options, **pool)
    assert ids(alias) == expected


def test_w011_sees_what_is_set_for_the_role(
    server: EmbeddedServer, make_database: MakeDatabase, clerk: str
) -> None:
    administer(server, "ALTER ROLE clerk SET idle_session_timeout = '90s'")
    alias = make_database(server)
    log_in_as(clerk, alias)
    [message] = check(alias)
    assert message.id == "django_pooled.W011"
    assert "idle for 90 s" in message.msg
    assert "1800 s (max_lifetime)" in message.msg


# W012 to W015: a pooler in between.


@pytest.fixture(scope="module", params=["session", "transaction"])
def bouncer(
    request: pytest.FixtureRequest, server: EmbeddedServer
) -> Iterator[pgbouncer.PgBouncer]:
    """PgBouncer, in each mode that Django can work with, which tells nothing of itself."""
    if pgbouncer.PROGRAM is None:
        pytest.skip("PgBouncer is not installed")
    with pgbouncer.PgBouncer(server, request.param, console=False) as made:
        yield made


@pytest.mark.parametrize(
    ("entry", "options", "pool", "expected"),
    [
        ({}, {}, {}, ["W012", "W015"]),
        ({"DISABLE_SERVER_SIDE_CURSORS": True}, {"prepare_threshold": None}, {}, ["W012"]),
        ({"DISABLE_SERVER_SIDE_CURSORS": True}, {"prepare_threshold": 5}, {}, ["W012"]),
        ({"DISABLE_SERVER_SIDE_CURSORS": True}, {"server_side_binding": True}, {}, ["W012"]),
        ({"DISABLE_SERVER_SIDE_CURSORS": True}, PREPARING, {}, ["W012", "W013"]),
        ({"DISABLE_SERVER_SIDE_CURSORS": True}, {"assume_role": "x"}, {}, ["W012", "W014"]),
        ({"DISABLE_SERVER_SIDE_CURSORS": True}, {}, {"reset": "discard"}, ["W012", "W014"]),
    ],
)
def test_w012_to_w015_tell_of_a_pooler_and_of_what_fails_behind_it(
    server: EmbeddedServer,
    bouncer: pgbouncer.PgBouncer,
    make_database: MakeDatabase,
    entry: dict[str, Any],
    options: dict[str, Any],
    pool: dict[str, Any],
    expected: list[str],
) -> None:
    # Too large for the server behind, which is the pooler's concern.
    alias = make_database(server, options=options, max_size=100, **pool)
    connections.settings[alias].update(HOST=bouncer.host, PORT=bouncer.port, **entry)
    assert ids(alias) == expected


def test_what_fails_behind_a_pooler_is_fine_on_the_server_itself(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    options = {**PREPARING, "assume_role": "pg_read_all_data"}
    assert ids(make_database(server, options=options, reset="discard")) == []


@pytest.mark.skipif(pgbouncer.PROGRAM is None, reason="PgBouncer is not installed")
@pytest.mark.parametrize("pool_mode", ["session", "transaction"])
def test_what_they_say_is_what_happens_in_transaction_mode_and_not_in_session_mode(
    server: EmbeddedServer,
    make_database: MakeDatabase,
    clerk: str,
    pool_mode: Literal["session", "transaction"],
) -> None:
    fails = pool_mode == "transaction"
    expected = pytest.raises(ProgrammingError) if fails else contextlib.nullcontext()
    with pgbouncer.PgBouncer(server, pool_mode, **pgbouncer.not_following()) as bouncer:

        def behind(**options: Any) -> str:
            alias = make_database(server, options=options, max_size=1)
            connections.settings[alias].update(HOST=bouncer.host, PORT=bouncer.port)
            return alias

        def ask(alias: str, query: str, *parameters: int) -> Any:
            with connections[alias].cursor() as cursor:
                cursor.execute(query, parameters)
                return cursor.fetchone()[0]

        other = behind()
        preparing = behind(**PREPARING)
        ask(preparing, "SELECT %s::int", 1)
        with atomic(using=other), expected:
            ask(other, "SELECT 1")  # Takes the session that was just used.
            ask(preparing, "SELECT %s::int", 2)
        cursor = connections[preparing].chunked_cursor()
        cursor.execute("SELECT generate_series(1, 9)")
        with atomic(using=other), expected:
            ask(other, "SELECT 1")
            cursor.fetchone()
        with contextlib.suppress(ProgrammingError):  # On whichever session this is.
            cursor.close()
        connections[preparing].close()
    # What assume_role sends, by clients that no pool gives a second connection meanwhile.
    with pgbouncer.PgBouncer(server, pool_mode) as bouncer, contextlib.ExitStack() as stack:
        address = {**server.parameters("postgres"), "host": bouncer.host, "port": bouncer.port}
        assuming, another = (
            stack.enter_context(psycopg.connect(**address, autocommit=True, prepare_threshold=None))
            for _ in range(2)
        )
        assuming.execute("SET ROLE clerk")
        with another.transaction():
            assert (another.execute("SELECT current_user").fetchone() == (clerk,)) is fails
            assert (assuming.execute("SELECT current_user").fetchone() == (clerk,)) is not fails


# What a server does not tell.


@pytest.mark.parametrize(
    ("emulation", "hidden"),
    [
        ("aurora", "pg_walfile_name(pg_current_wal_lsn()), pg_stat_wal"),
        ("hardened", "pg_control_system(), pg_walfile_name(pg_current_wal_lsn()), "),
        ("bare", "pg_current_xact_id_if_assigned(), pg_control_system(), "),
    ],
)
def test_a_server_that_tells_less_is_shown_with_what_it_hides(
    emulation: str,
    hidden: str,
    make_server: Callable[..., EmbeddedServer],
    make_database: MakeDatabase,
) -> None:
    server = make_server()
    EMULATIONS[emulation](server)
    administer(server, f"CREATE ROLE clerk LOGIN PASSWORD '{PASSWORD}'")
    alias = make_database(server)
    log_in_as("clerk", alias)
    (message,) = check(alias)
    assert message.id == "django_pooled.W020"
    assert f"does not tell the role 'clerk': {hidden}" in message.msg
    assert "commit_check='token'" in str(message.hint)


@pytest.mark.skipif(pgbouncer.PROGRAM is None, reason="PgBouncer is not installed")
def test_behind_a_pooler_it_is_shown_too(
    make_server: Callable[..., EmbeddedServer], make_database: MakeDatabase
) -> None:
    server = make_server()
    EMULATIONS["aurora"](server)
    alias = make_database(server)
    with pgbouncer.PgBouncer(server, "transaction") as pooler:
        connections.settings[alias].update(HOST=pooler.host, PORT=pooler.port)
        assert "W020" in ids(alias)


# Row-level security.

POLICIES = {
    "by a setting": "USING (owner = current_setting('app.tenant', true))",
    "by a function": "WITH CHECK (owner = tenant_of_this_session())",
    "by the role": "USING (owner = CURRENT_USER)",
    "to a role": "TO clerk USING (true)",
}


@pytest.fixture
def ledger(server: EmbeddedServer, clerk: str) -> Iterator[Callable[[str], None]]:
    """A table with row-level security; makes its policy."""
    administer(
        server,
        "CREATE TABLE ledger (owner text)",
        "ALTER TABLE ledger ENABLE ROW LEVEL SECURITY",
        "CREATE FUNCTION tenant_of_this_session() RETURNS text LANGUAGE sql STABLE"
        " AS $$ SELECT current_setting('app.tenant', true) $$",
    )
    yield lambda policy: administer(server, f"CREATE POLICY tenants ON ledger {policy}")
    administer(server, "DROP TABLE ledger", "DROP FUNCTION tenant_of_this_session")


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_w019_tells_that_what_policies_go_by_stays_in_the_session(
    server: EmbeddedServer,
    make_database: MakeDatabase,
    ledger: Callable[[str], None],
    policy: str,
) -> None:
    ledger(policy)
    alias = make_database(server, reset="rollback")
    [message] = check(alias)
    assert message.id == "django_pooled.W019"
    assert "public.ledger" in message.msg
    assert ids(make_database(server, reset=None)) == ["W019"]


def test_policies_are_of_no_concern_where_nothing_stays(
    server: EmbeddedServer, make_database: MakeDatabase, ledger: Callable[[str], None]
) -> None:
    ledger(POLICIES["by a setting"])
    assert ids(make_database(server, max_size=2)) == []
    assert ids(make_database(server, max_size=2, reset="discard")) == []
    assert ids(make_database(server, max_size=2, reset="rollback", pool_mode="transaction")) == []
    administer(server, "ALTER TABLE ledger DISABLE ROW LEVEL SECURITY")
    assert ids(make_database(server, max_size=2, reset="rollback")) == []


def test_a_policy_that_goes_by_the_row_alone_is_of_no_concern(
    server: EmbeddedServer, make_database: MakeDatabase, ledger: Callable[[str], None]
) -> None:
    ledger("USING (owner IN ('a', 'b') OR owner IS NULL)")
    assert ids(make_database(server, max_size=2, reset="rollback")) == []


# W025: a server that cannot write.


@pytest.fixture(scope="module")
def standby(server: EmbeddedServer, servers: Servers) -> Iterator[EmbeddedServer]:
    """A standby of the server."""
    made = servers.make(primary=server, settings={"max_connections": "30"})
    made.start()
    yield made
    servers.remove(made)


def test_w024_tells_that_all_writes_will_fail(
    standby: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(standby)
    [message] = check(alias)
    assert message.id == "django_pooled.W025"
    assert message.msg == (
        f"DATABASES[{alias!r}]: 127.0.0.1:{standby.port} is a read-only standby: "
        "writes fail (25006)."
    )


def test_w024_tells_of_a_role_that_may_only_read(
    server: EmbeddedServer, make_database: MakeDatabase, clerk: str
) -> None:
    administer(server, f"ALTER ROLE {clerk} SET default_transaction_read_only = on")
    alias = make_database(server)
    log_in_as(clerk, alias)
    [message] = check(alias)
    assert "is read-only (default_transaction_read_only)" in message.msg


@pytest.mark.parametrize(
    "declared",
    [
        {"pool": {"read_only": True}},
        {"target_session_attrs": "prefer-standby"},
        {"TEST": {"MIRROR": "default"}},
    ],
    ids=["read_only", "target_session_attrs", "mirror"],
)
def test_a_replica_that_the_settings_call_one_is_in_order(
    standby: EmbeddedServer, make_database: MakeDatabase, declared: dict[str, Any]
) -> None:
    options = {name: declared[name] for name in ("target_session_attrs",) if name in declared}
    alias = make_database(standby, options=options, **declared.get("pool", {}))
    connections.settings[alias]["TEST"] = declared.get("TEST", {})
    assert check(alias) == []


def test_a_project_that_asks_for_reading_transactions_itself_is_in_order(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    options = {"options": "-c default_transaction_read_only=on"}
    assert check(make_database(server, options=options)) == []
