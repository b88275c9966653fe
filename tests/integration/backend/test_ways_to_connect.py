"""Every way in which Django reaches PostgreSQL, with a pool and without: the same answers."""

from __future__ import annotations

import contextlib
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Protocol

import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import Error as DatabaseFault
from django.db import (
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    close_old_connections,
    connections,
)
from django.db.transaction import atomic
from django.test import override_settings
from psycopg import IsolationLevel

from django_pooled import ConnectFailed, retry_transaction
from django_pooled.base import DatabaseWrapper
from django_pooled.testing import fail_next_transaction, terminate_backend
from tests.app.models import Note
from tests.servers.certificates import Certificates, Client, versions_with_tls
from tests.servers.postgresql import backend_pids, kill_backends, versions
from tests.support.pools import fill
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from embedded_postgres import EmbeddedServer
    from tests.servers.postgresql import Servers
    from tests.support.pools import MakeDatabase

    Pair = tuple[EmbeddedServer, EmbeddedServer]

NATIVE = "django.db.backends.postgresql"
NOWHERE: dict[str, Any] = {"HOST": "", "PORT": "", "USER": "", "PASSWORD": "", "NAME": ""}
"""Leaves the address to libpq."""


class Connect(Protocol):
    def __call__(
        self, server: EmbeddedServer, options: dict[str, Any] | None = None, **settings: Any
    ) -> str: ...


@pytest.fixture(params=["session", "transaction", "native"])
def connect(request: pytest.FixtureRequest, make_database: MakeDatabase) -> Connect:
    """Make aliases that lead to a server: with each mode of a pool, and with Django's engine."""

    def connect(
        server: EmbeddedServer, options: dict[str, Any] | None = None, **settings: Any
    ) -> str:
        alias = make_database(server, options=options)
        entry = connections.settings[alias]
        if request.param == "native":
            del entry["OPTIONS"]["pool"]
            entry["ENGINE"] = NATIVE
        else:
            entry["OPTIONS"]["pool"]["pool_mode"] = request.param
        entry.update(settings)
        return alias

    return connect


@pytest.fixture(scope="module")
def pair(servers: Servers) -> Iterator[Pair]:
    """A primary that listens on a socket in its data folder too, and its standby."""
    primary = servers.make()
    primary.settings["unix_socket_directories"] = str(primary.data)
    primary.start()
    standby = servers.make(primary=primary)
    standby.start()
    yield primary, standby
    servers.remove(standby)
    servers.remove(primary)


def is_pooled(alias: str) -> bool:
    return isinstance(connections[alias], DatabaseWrapper)


def ask(alias: str, statement: str, *parameters: Any) -> Any:
    """Return the first value of the answer, within a request of its own."""
    with connections[alias].cursor() as cursor:
        cursor.execute(statement, parameters or None)
        row = cursor.fetchone() if cursor.description else None
    return row[0] if row else None


def ask_in_requests(alias: str, statement: str, *parameters: Any) -> Any:
    """Ask in three requests one after another, and return the answer, which has to be the same."""
    answers = []
    for _ in range(3):
        answers.append(ask(alias, statement, *parameters))
        close_old_connections()
    assert len(set(answers)) == 1
    return answers[0]


def execute(server: EmbeddedServer, *statements: str) -> None:
    """Have the server execute statements, outside of any alias."""
    with psycopg.connect(**server.parameters(), autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def refusal(alias: str) -> str:
    """Return the words with which a connection is refused, at once and for good."""
    with pytest.raises(OperationalError) as refused:
        ask(alias, "SELECT 1")
    if is_pooled(alias):
        assert isinstance(refused.value, ConnectFailed)
        assert refused.value.elapsed < 5
    return str(refused.value)


# Where the address and the password come from.


@pytest.fixture
def service(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """OPTIONS for a service file that holds the whole address."""
    lines = [f"{key}={value}" for key, value in server.parameters().items()]
    (tmp_path / "services").write_text("\n".join(["[shop]", *lines, "application_name=till"]))
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    return {"service": "shop"}


def test_a_service_file_holds_the_whole_address(
    connect: Connect, server: EmbeddedServer, service: dict[str, Any]
) -> None:
    alias = connect(server, service, **NOWHERE)
    assert ask_in_requests(alias, "SELECT inet_server_port()") == server.port
    assert ask_in_requests(alias, "SELECT current_database()::text") == "postgres"


def test_a_name_in_a_service_file_wins_over_the_pool_s(
    connect: Connect, server: EmbeddedServer, service: dict[str, Any]
) -> None:
    alias = connect(server, service, **NOWHERE)
    assert ask_in_requests(alias, "SELECT current_setting('application_name')") == "till"


def test_settings_win_over_a_service_file(
    connect: Connect, server: EmbeddedServer, service: dict[str, Any]
) -> None:
    alias = connect(server, service, **{**NOWHERE, "NAME": "template1"})
    assert ask_in_requests(alias, "SELECT current_database()::text") == "template1"


def test_an_unknown_service_is_refused_at_once(
    connect: Connect, server: EmbeddedServer, service: dict[str, Any]
) -> None:
    alias = connect(server, {"service": "shoe"}, **NOWHERE)
    assert 'definition of service "shoe" not found' in refusal(alias)


@pytest.fixture
def passfile(server: EmbeddedServer, tmp_path: Path) -> Path:
    path = tmp_path / "passwords"
    path.write_text(f"{server.host}:{server.port}:*:{server.user}:{server.password}\n")
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("place", ["option", "variable", "home"])
def test_the_password_comes_from_a_password_file(
    connect: Connect,
    server: EmbeddedServer,
    passfile: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    options = {"passfile": str(passfile)} if place == "option" else {}
    if place == "variable":
        monkeypatch.setenv("PGPASSFILE", str(passfile))
    if place == "home":
        passfile.rename(passfile.parent / ".pgpass")
        monkeypatch.setenv("HOME", str(passfile.parent))
    alias = connect(server, options, PASSWORD="")
    assert ask_in_requests(alias, "SELECT 42") == 42


def test_a_password_file_without_the_password_is_refused_at_once(
    connect: Connect, server: EmbeddedServer, passfile: Path
) -> None:
    alias = connect(server, {"passfile": f"{passfile}-not-there"}, PASSWORD="")
    assert "no password supplied" in refusal(alias)
    passfile.write_text("*:*:*:*:another\n")
    alias = connect(server, {"passfile": str(passfile)}, PASSWORD="")
    assert "password authentication failed" in refusal(alias)


def test_a_host_that_is_a_folder_is_a_unix_socket(connect: Connect, pair: Pair) -> None:
    primary, _ = pair
    alias = connect(primary, HOST=str(primary.data))
    assert ask_in_requests(alias, "SELECT inet_server_port() IS NULL AND pg_backend_pid() > 0")
    assert ask(alias, "SELECT pg_backend_pid()") in backend_pids(primary, "postgres")
    close_old_connections()
    kill_backends(primary, "postgres")
    assert ask_in_requests(alias, "SELECT 42") == 42


@pytest.mark.parametrize("pool_mode", ["session", "transaction"])
def test_a_loss_between_two_statements_is_seen_on_a_unix_socket(
    pair: Pair, make_database: MakeDatabase, pool_mode: str
) -> None:
    primary, _ = pair
    alias = make_database(primary, pool_mode=pool_mode)
    connections.settings[alias]["HOST"] = str(primary.data)
    with connections[alias].cursor() as cursor:
        terminate_backend(using=alias)
        cursor.execute("SELECT 42")
        assert cursor.fetchone() == (42,)
    connections[alias].close()


def test_without_a_host_the_environment_s_is_taken(
    connect: Connect, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    primary, _ = pair
    monkeypatch.setenv("PGHOST", str(primary.data))
    alias = connect(primary, HOST="")
    assert ask_in_requests(alias, "SELECT inet_server_port() IS NULL")


def test_a_lost_commit_is_resolved_through_a_unix_socket(
    pair: Pair, make_database: MakeDatabase
) -> None:
    primary, _ = pair
    alias = make_database(primary)
    connections.settings[alias]["HOST"] = str(primary.data)
    execute(primary, "DROP TABLE IF EXISTS letters", "CREATE TABLE letters (letter text)")

    @retry_transaction(using=alias)
    def insert() -> None:
        ask(alias, "INSERT INTO letters VALUES ('a')")

    with fail_next_transaction(None, phase="answer", using=alias) as fault:
        insert()
    assert fault.struck == 1
    assert ask(alias, "SELECT count(*) FROM letters") == 1


def test_a_warning_at_each_login_is_no_reason_to_leave_a_session(
    connect: Connect, shared_server: EmbeddedServer
) -> None:
    # Since version 19 the server warns of a password that is about to expire.
    execute(
        shared_server,
        "DROP ROLE IF EXISTS expiring",
        "CREATE ROLE expiring LOGIN PASSWORD 'soon'",
        f"ALTER ROLE expiring VALID UNTIL '{datetime.now(timezone.utc) + timedelta(days=3)}'",
    )
    alias = connect(shared_server, USER="expiring", PASSWORD="soon")
    assert ask_in_requests(alias, "SELECT current_user::text") == "expiring"
    if is_pooled(alias):
        assert ask_in_requests(alias, "SELECT pg_backend_pid()")


def test_a_read_of_a_replica_can_wait_for_what_was_written(connect: Connect, pair: Pair) -> None:
    primary, standby = pair
    with psycopg.connect(**primary.parameters(), autocommit=True) as connection:
        if connection.info.server_version < 190000:
            pytest.skip("WAIT FOR LSN came with PostgreSQL 19")
        connection.execute("DROP TABLE IF EXISTS written")
        connection.execute("CREATE TABLE written (number int)")
        alias = connect(standby)
        for number in range(3):
            connection.execute("INSERT INTO written VALUES (%s)", [number])
            place = connection.execute("SELECT pg_current_wal_lsn()::text").fetchone()
            assert place is not None
            assert ask(alias, f"WAIT FOR LSN '{place[0]}' WITH (timeout '60s')") == "success"
            assert ask(alias, "SELECT max(number) FROM written") == number
            close_old_connections()


# TLS.


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """The clients' side of `tls_server`."""
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def tls_server(servers: Servers, certificates: Certificates) -> Iterator[EmbeddedServer]:
    """A server that lets the role "clerk" in by a certificate of that name alone."""
    found = [version for version in versions_with_tls() if version in versions()]
    if not found:
        pytest.skip("no PostgreSQL here was built with OpenSSL; the wheel's is not")
    made = servers.make(found[-1])
    made.start()
    certificates.serve(made, "clerk")
    yield made
    servers.remove(made)


def tls(certificates: Certificates, client: Client | None) -> dict[str, Any]:
    """Return OPTIONS that check the server's certificate and name, and show the client's."""
    # Named even where there is none: libpq would look into ~/.postgresql.
    shown = client or Client("/no/certificate", "/no/key")
    return {"sslmode": "verify-full", "sslrootcert": certificates.root, **shown._asdict()}


def test_a_client_is_let_in_by_its_certificate_and_the_server_s_is_checked(
    connect: Connect, tls_server: EmbeddedServer, certificates: Certificates
) -> None:
    options = tls(certificates, certificates.client("clerk"))
    alias = connect(tls_server, options, USER="clerk", PASSWORD="")
    assert ask_in_requests(alias, "SELECT current_user::text") == "clerk"
    encrypted = "SELECT ssl AND client_dn LIKE '%/CN=clerk' FROM pg_stat_ssl WHERE pid = "
    assert ask_in_requests(alias, f"{encrypted} pg_backend_pid()") is True
    kill_backends(tls_server, "postgres")
    connections[alias].close()
    assert ask_in_requests(alias, "SELECT 42") == 42


@pytest.mark.parametrize("pool_mode", ["session", "transaction"])
def test_a_loss_between_two_statements_is_seen_through_tls(
    tls_server: EmbeddedServer,
    certificates: Certificates,
    make_database: MakeDatabase,
    pool_mode: str,
) -> None:
    options = tls(certificates, certificates.client("clerk"))
    alias = make_database(tls_server, options=options, pool_mode=pool_mode)
    connections.settings[alias].update(USER="clerk", PASSWORD="")
    assert ask(alias, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()") is True
    for _ in range(3):
        with connections[alias].cursor() as cursor:
            terminate_backend(using=alias)
            cursor.execute("SELECT 42")
            assert cursor.fetchone() == (42,)
    connections[alias].close()


@pytest.mark.parametrize(
    ("client", "words"),
    [
        (None, "connection requires a valid client certificate"),
        ({"name": "visitor"}, 'certificate authentication failed for user "clerk"'),
        ({"name": "clerk", "trusted": False}, "alert unknown ca"),
        ({"name": "clerk", "expired": True}, "alert certificate expired"),
    ],
)
def test_a_client_s_certificate_that_is_refused_is_told_at_once(
    connect: Connect,
    tls_server: EmbeddedServer,
    certificates: Certificates,
    client: dict[str, Any] | None,
    words: str,
) -> None:
    options = tls(certificates, certificates.client(**client) if client else None)
    assert words in refusal(connect(tls_server, options, USER="clerk", PASSWORD=""))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"sslrootcert": "stranger"}, "certificate verify failed"),
        ({"sslrootcert": "/no/root"}, 'root certificate file "/no/root" does not exist'),
        ({"host": "localhost", "hostaddr": "127.0.0.1"}, 'does not match host name "localhost"'),
        ({"sslmode": "disable"}, "pg_hba.conf rejects connection"),
        ({"sslmode": "sometimes"}, "invalid sslmode value"),
    ],
)
def test_a_server_s_certificate_that_is_refused_is_told_at_once(
    connect: Connect,
    tls_server: EmbeddedServer,
    certificates: Certificates,
    changed: dict[str, str],
    words: str,
) -> None:
    if changed.get("sslrootcert") == "stranger":
        changed = {"sslrootcert": certificates.stranger_s_root}
    options = tls(certificates, certificates.client("clerk")) | changed
    settings = {"HOST": options.pop("host")} if "host" in options else {}
    assert words in refusal(connect(tls_server, options, USER="clerk", PASSWORD="", **settings))


def test_ports_that_do_not_match_the_hosts_are_refused_at_once(
    connect: Connect, server: EmbeddedServer
) -> None:
    assert "could not match 3 port numbers" in refusal(connect(server, PORT="1,2,3"))


# Several servers.


def hosts(*servers: EmbeddedServer) -> dict[str, str]:
    return {
        "HOST": ",".join(server.host for server in servers),
        "PORT": ",".join(str(server.port) for server in servers),
    }


def test_of_several_hosts_the_one_that_can_write_is_taken(connect: Connect, pair: Pair) -> None:
    primary, standby = pair
    alias = connect(primary, {"target_session_attrs": "read-write"}, **hosts(standby, primary))
    assert ask_in_requests(alias, "SELECT inet_server_port()") == primary.port


def test_of_several_hosts_a_standby_can_be_asked_for(connect: Connect, pair: Pair) -> None:
    primary, standby = pair
    alias = connect(primary, {"target_session_attrs": "standby"}, **hosts(primary, standby))
    assert ask_in_requests(alias, "SELECT inet_server_port()") == standby.port


def test_new_connections_are_spread_over_several_hosts(connect: Connect, pair: Pair) -> None:
    primary, standby = pair
    alias = connect(primary, {"load_balance_hosts": "random"}, **hosts(primary, standby))
    ports = set()

    def both() -> bool:
        ports.add(ask(alias, "SELECT inet_server_port()"))
        connections[alias].close()
        if is_pooled(alias):
            connections[alias].close_pool()  # type: ignore[attr-defined]
        return ports == {primary.port, standby.port}

    wait_until(both)


class Replicas:
    """Reads from one alias, writes to another."""

    reading = writing = ""

    def db_for_read(self, model: object, **hints: Any) -> str:
        return self.reading

    def db_for_write(self, model: object, **hints: Any) -> str:
        return self.writing

    def allow_relation(self, *objects: object, **hints: Any) -> bool:
        return True


@pytest.fixture
def notes(pair: Pair) -> Iterator[None]:
    """The table of Note on the primary, and a moment later on the standby."""
    primary = pair[0]
    table = Note._meta.db_table
    execute(
        primary,
        f"CREATE TABLE {table} (id bigserial PRIMARY KEY, text text NOT NULL, key uuid NOT NULL)",
    )
    yield
    execute(primary, f"DROP TABLE {table}")


def test_a_router_sends_reads_to_a_standby_and_writes_to_the_primary(
    connect: Connect, pair: Pair, notes: None
) -> None:
    primary, standby = pair
    router = Replicas()
    router.writing, router.reading = connect(primary), connect(standby)
    with override_settings(DATABASE_ROUTERS=[router]):
        for text in ("one", "two"):
            Note.objects.create(text=text)
        wait_until(lambda: Note.objects.count() == 2)
        note = Note.objects.get(text="one")
        assert note._state.db == router.reading
        note.text = "three"
        note.save()
        wait_until(lambda: set(Note.objects.values_list("text", flat=True)) == {"two", "three"})
        with pytest.raises(Exception, match="read-only transaction"):
            Note.objects.using(router.reading).create(text="never")
        close_old_connections()
        assert Note.objects.count() == 2
        assert Note.objects.using(router.writing).count() == 2


def test_several_aliases_of_one_database_have_transactions_of_their_own(
    connect: Connect, server: EmbeddedServer
) -> None:
    execute(server, "DROP TABLE IF EXISTS letters", "CREATE TABLE letters (letter text)")
    one, other = connect(server), connect(server)
    with atomic(using=one):
        ask(one, "INSERT INTO letters VALUES ('a')")
        assert ask(other, "SELECT count(*) FROM letters") == 0
    assert ask(other, "SELECT count(*) FROM letters") == 1
    assert ask(one, "SELECT pg_backend_pid()") != ask(other, "SELECT pg_backend_pid()")


# What a session is set to.


def test_a_role_is_assumed_in_every_request(connect: Connect, server: EmbeddedServer) -> None:
    execute(server, "DROP ROLE IF EXISTS till", "CREATE ROLE till")
    alias = connect(server, {"assume_role": "till"})
    assert ask_in_requests(alias, "SELECT current_user::text") == "till"
    assert ask_in_requests(alias, "SELECT session_user::text") == server.user


@pytest.mark.parametrize("level", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE])
def test_every_transaction_has_the_isolation_level_of_the_settings(
    connect: Connect, server: EmbeddedServer, level: IsolationLevel
) -> None:
    alias = connect(server, {"isolation_level": level})
    for _ in range(3):
        with atomic(using=alias):
            name = ask(alias, "SELECT current_setting('transaction_isolation')")
        assert name == level.name.lower().replace("_", " ")
        close_old_connections()


@pytest.mark.parametrize("server_side_binding", [False, True])
def test_parameters_are_bound_by_the_client_or_by_the_server(
    connect: Connect, server: EmbeddedServer, server_side_binding: bool
) -> None:
    alias = connect(server, {"server_side_binding": server_side_binding})
    # Only a statement without parameters left in it can be any statement.
    with connections[alias].cursor() as cursor:
        if server_side_binding:
            with pytest.raises(ProgrammingError, match=r"\$1"):
                cursor.execute("SET work_mem TO %s", ["1MB"])
        else:
            cursor.execute("SET work_mem TO %s", ["1MB"])
    assert ask_in_requests(alias, "SELECT %s::int + %s::int", 40, 2) == 42


@pytest.mark.parametrize("server_side_binding", [False, True])
def test_a_lost_commit_is_resolved_with_either_binding(
    server: EmbeddedServer, make_database: MakeDatabase, server_side_binding: bool
) -> None:
    alias = make_database(server, options={"server_side_binding": server_side_binding})
    execute(server, "DROP TABLE IF EXISTS letters", "CREATE TABLE letters (letter text)")

    @retry_transaction(using=alias)
    def insert() -> None:
        ask(alias, "INSERT INTO letters VALUES (%s)", "a")

    with fail_next_transaction(None, phase="answer", using=alias) as fault:
        insert()
    assert fault.struck == 1
    assert ask(alias, "SELECT count(*) FROM letters") == 1


PREPARED = "SELECT count(*) FROM pg_prepared_statements WHERE NOT from_sql"


@pytest.mark.parametrize(("threshold", "prepared"), [(0, True), (5, True), (None, False)])
def test_statements_are_prepared_after_as_many_uses_as_the_settings_say(
    connect: Connect, server: EmbeddedServer, threshold: int | None, prepared: bool
) -> None:
    # Django's cursors that bind on the client's side never prepare.
    options = {"prepare_threshold": threshold, "server_side_binding": True}
    alias = connect(server, options)
    for number in range(7):
        assert ask(alias, "SELECT %s::int", number) == number
        if is_pooled(alias):
            close_old_connections()
    assert bool(ask(alias, PREPARED)) is prepared


@pytest.fixture
def letters(server: EmbeddedServer) -> str:
    """A table with one column and one row, and a statement whose answer has its columns."""
    execute(
        server,
        "DROP TABLE IF EXISTS letters",
        "CREATE TABLE letters (letter varchar(10))",
        "INSERT INTO letters VALUES ('a')",
    )
    return "SELECT letters.* FROM letters WHERE %s"


ALTERED = [
    "ALTER TABLE letters ADD COLUMN place int",
    "ALTER TABLE letters ALTER COLUMN letter TYPE varchar(20)",
]


def test_a_prepared_statement_lives_on_from_request_to_request(
    server: EmbeddedServer, make_database: MakeDatabase, letters: str
) -> None:
    options = {"prepare_threshold": 0, "server_side_binding": True}
    alias = make_database(server, options=options, max_size=1)
    assert ask_in_requests(alias, letters, True) == "a"
    uses = "SELECT generic_plans + custom_plans FROM pg_prepared_statements WHERE statement LIKE %s"
    assert ask(alias, uses, "SELECT letters%") == 3
    # What changes neither the columns nor their types only has the server plan anew.
    execute(server, "CREATE INDEX ON letters (letter)", "ALTER TABLE letters SET (fillfactor = 50)")
    assert ask_in_requests(alias, letters, True) == "a"


@pytest.mark.parametrize("change", ALTERED)
def test_after_ddl_a_prepared_statement_fails_once_and_not_once_for_each_connection(
    server: EmbeddedServer, make_database: MakeDatabase, letters: str, change: str
) -> None:
    options = {"prepare_threshold": 0, "server_side_binding": True}
    alias = make_database(server, options=options, max_size=3)
    pool = connections[alias].pool  # type: ignore[attr-defined]
    held = [pool.checkout() for _ in range(3)]
    for connection in held:
        with connection.cursor() as cursor:
            assert cursor.execute(letters, [True]).fetchone() == ("a",)
    for connection in held[1:]:
        pool.checkin(connection)
    # One connection is in use by another thread meanwhile, and one is idle after the failure.
    execute(server, change)
    with pytest.raises(NotSupportedError, match="cached plan must not change result type"):
        ask(alias, letters, True)
    pool.checkin(held[0])
    connections[alias].close()
    for _ in range(3):
        assert ask_in_requests(alias, letters, True) == "a"
    closed = pool.snapshot().counters.closed
    assert (closed["error"], closed["drained"], sum(closed.values())) == (2, 1, 3)


def test_without_prepared_statements_ddl_does_no_harm(
    connect: Connect, server: EmbeddedServer, letters: str
) -> None:
    alias = connect(server, {"server_side_binding": True})
    for change in ALTERED:
        assert ask_in_requests(alias, letters, True) == "a"
        execute(server, change)
    assert ask_in_requests(alias, letters, True) == "a"


# Server-side cursors.

ROWS = "SELECT n AS id, 'row ' || n AS text FROM generate_series(1, 500) n"
CURSORS = "SELECT count(*) FROM pg_cursors WHERE name LIKE '_django_curs%%'"


@pytest.mark.parametrize("disabled", [False, True])
@pytest.mark.parametrize("in_transaction", [False, True])
def test_iterator_reads_by_a_cursor_of_the_server_unless_it_is_disabled(
    connect: Connect, pair: Pair, notes: None, disabled: bool, in_transaction: bool
) -> None:
    alias = connect(pair[0], DISABLE_SERVER_SIDE_CURSORS=disabled)
    Note.objects.using(alias).bulk_create(Note(text=str(number)) for number in range(500))
    block = atomic(using=alias) if in_transaction else contextlib.nullcontext()
    with block:
        rows = Note.objects.using(alias).order_by("id").iterator(chunk_size=100)
        assert next(rows).text == "0"
        assert ask(alias, CURSORS) == (0 if disabled else 1)
        assert sum(1 for _ in rows) == 499
        assert ask(alias, CURSORS) == 0
        # Left off half-way.
        rows = Note.objects.using(alias).order_by("id").iterator(chunk_size=100)
        next(rows)
        del rows
        assert ask(alias, CURSORS) == 0
    close_old_connections()
    assert Note.objects.using(alias).count() == 500


def test_an_iterator_ends_with_the_request_that_began_it(
    connect: Connect, pair: Pair, notes: None
) -> None:
    alias = connect(pair[0])
    Note.objects.using(alias).bulk_create(Note(text=str(number)) for number in range(500))
    rows = Note.objects.using(alias).order_by("id").iterator(chunk_size=100)
    assert next(rows).text == "0"
    close_old_connections()
    # Another request may have the connection by now.
    assert ask(alias, CURSORS) == 0
    with pytest.raises(DatabaseFault, match=r"is closed|went back to its pool"):
        list(rows)
    assert ask(alias, "SELECT 42") == 42


@pytest.mark.parametrize("in_transaction", [False, True])
def test_a_connection_lost_under_an_iterator_costs_the_next_request_nothing(
    pair: Pair, make_database: MakeDatabase, notes: None, in_transaction: bool
) -> None:
    alias = make_database(pair[0], max_size=1)
    Note.objects.using(alias).bulk_create(Note(text=str(number)) for number in range(500))
    wrapper = connections[alias]
    wrapper.set_autocommit(not in_transaction)
    rows = Note.objects.using(alias).iterator(chunk_size=100)
    next(rows)
    kill_backends(pair[0], "postgres")
    wrapper.close()
    assert ask_in_requests(alias, "SELECT 42") == 42
    with pytest.raises(DatabaseFault, match="went back to its pool"):
        list(rows)


# Time zones.

ZONE = "SELECT current_setting('TimeZone')"


def zones(alias: str) -> set[str]:
    """Return the time zones of the sessions that requests may get."""
    if not is_pooled(alias):
        return {ask_in_requests(alias, ZONE)}
    connections[alias].close()
    pool = connections[alias].pool  # type: ignore[attr-defined]
    fill(pool, 3)
    held = [pool.checkout() for _ in range(3)]
    found = {connection.execute(ZONE).fetchone()[0] for connection in held}
    for connection in held:
        pool.checkin(connection)
    return found


def test_a_changed_time_zone_reaches_every_session(
    connect: Connect, server: EmbeddedServer
) -> None:
    alias = connect(server)
    assert zones(alias) == {"UTC"}
    with override_settings(USE_TZ=False, TIME_ZONE="Asia/Tokyo"):
        assert zones(alias) == {"Asia/Tokyo"}
        with override_settings(TIME_ZONE="Europe/Paris"):
            assert zones(alias) == {"Europe/Paris"}
        with override_settings(USE_TZ=True):
            assert zones(alias) == {"UTC"}
        assert zones(alias) == {"Asia/Tokyo"}
    assert zones(alias) == {"UTC"}


def test_a_database_s_own_time_zone_stays_when_the_site_s_changes(
    connect: Connect, server: EmbeddedServer
) -> None:
    alias = connect(server, TIME_ZONE="Asia/Tokyo")
    assert zones(alias) == {"Asia/Tokyo"}
    with override_settings(TIME_ZONE="Europe/Paris"):
        assert zones(alias) == {"Asia/Tokyo"}
    with (
        override_settings(USE_TZ=False),
        pytest.raises(ImproperlyConfigured, match="cannot set TIME_ZONE"),
    ):
        ask(alias, ZONE)
    assert zones(alias) == {"Asia/Tokyo"}


def test_a_changed_time_zone_reaches_the_connection_in_use(
    connect: Connect, server: EmbeddedServer
) -> None:
    alias = connect(server)
    assert ask(alias, ZONE) == "UTC"
    with override_settings(USE_TZ=False, TIME_ZONE="Asia/Tokyo"):
        assert ask(alias, ZONE) == "Asia/Tokyo"
    assert ask(alias, ZONE) == "UTC"
