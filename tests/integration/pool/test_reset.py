"""What a checkin clears: all that a statement may have left, and only then."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.db import OperationalError, ProgrammingError, connections
from django.db.backends.signals import connection_created
from django.db.transaction import atomic

from django_pooled.base import DatabaseWrapper
from tests.servers.postgresql import versions
from tests.support.pools import snapshot_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from embedded_postgres import EmbeddedServer
    from tests.servers.postgresql import Servers
    from tests.support.pools import MakeDatabase, MakePool

MODES = ("session", "transaction")
SETTING = "SELECT coalesce(current_setting('app.tenant', true), '')"
ROLE = "SELECT current_user::text"

LEAVES_A_SETTING = {
    "SET": "SET app.tenant TO 'somebody'",
    "SET in a comment's shadow": "/* SELECT 1 */ SET/**/app.tenant TO 'somebody'",
    "one of several": "SELECT 1; SET app.tenant TO 'somebody'; SELECT 2",
    "set_config()": "SELECT set_config('app.tenant', 'somebody', false)",
    "a quoted name": "SELECT \"set_config\"('app.tenant', 'somebody', NOT true)",
    "a CTE": "WITH s AS (SELECT set_config('app.tenant', 'somebody', false)) SELECT * FROM s",
    "a function": "SELECT become('somebody')",
    "DO": "DO $$ BEGIN PERFORM set_config('app.tenant', 'somebody', false); END $$",
    "CALL": "CALL become_by_call('somebody')",
    "EXPLAIN ANALYZE": "EXPLAIN ANALYZE SELECT become('somebody')",
}
LEAVES_A_ROLE = {
    "RESET ROLE": "RESET ROLE",
    "SET ROLE": "SET ROLE NONE",
    "another role": "SET SESSION ROLE other_role",
    "RESET SESSION AUTHORIZATION": "RESET SESSION AUTHORIZATION",
    "SET SESSION AUTHORIZATION": "RESET ROLE;; SET SESSION AUTHORIZATION other_role",
    "DISCARD ALL": "DISCARD ALL",
    "RESET ALL and more": "RESET ALL;; RESET ROLE",
    "set_config()": "SELECT set_config('role', 'none', false)",
    "a function": "SELECT lose_role()",
    "DO": "DO $$ BEGIN RESET ROLE; END $$",
    "an update": "UPDATE pg_settings SET setting = 'none' WHERE name = 'role'",
}


@pytest.fixture(scope="module")
def house(servers: Servers) -> Iterator[EmbeddedServer]:
    """A server with roles, and with functions that change their session."""
    made = servers.make(versions()[0])
    made.start()
    administer(
        made,
        "CREATE ROLE app_role",
        "CREATE ROLE other_role",
        "CREATE FUNCTION become(text) RETURNS text LANGUAGE sql"
        " AS $$ SELECT set_config('app.tenant', $1, false) $$",
        "CREATE PROCEDURE become_by_call(name text) LANGUAGE sql AS $$ SELECT become(name) $$",
        "CREATE FUNCTION lose_role() RETURNS void LANGUAGE sql"
        " AS $$ SELECT set_config('role', 'none', false) $$",
        "CREATE TABLE item (id serial, name text)",
        "GRANT ALL ON item, item_id_seq TO app_role",
    )
    yield made
    servers.remove(made)


def administer(server: EmbeddedServer, *statements: str) -> None:
    with psycopg.connect(**server.parameters("postgres"), autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


def request(alias: str, *statements: str) -> Any:
    """Run statements, give the connection back, and return the last one's value."""
    try:
        with connections[alias].cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            row = cursor.fetchone() if cursor.description else None
            return row and row[0]
    finally:
        connections[alias].close()


def leave_unseen(alias: str) -> None:
    """Leave a setting in the session, past everything that looks at statements."""
    wrapper = connections[alias]
    wrapper.ensure_connection()
    wrapper.connection.pgconn.exec_(b"SET app.unseen TO 'yes'")
    wrapper.close()


def was_cleared(alias: str) -> bool:
    return not request(alias, "SELECT current_setting('app.unseen', true) = 'yes'")


def connects(alias: str) -> int:
    pool = snapshot_of(alias)
    return pool.counters.connects


# "auto", the default.


@pytest.mark.parametrize("pool_mode", MODES)
@pytest.mark.parametrize("statement", LEAVES_A_SETTING.values(), ids=LEAVES_A_SETTING)
def test_a_setting_is_gone_for_the_next_user(
    house: EmbeddedServer, make_database: MakeDatabase, pool_mode: str, statement: str
) -> None:
    alias = make_database(house, max_size=1, pool_mode=pool_mode)
    request(alias, statement)
    assert request(alias, SETTING) == ""
    assert connects(alias) == 1


@pytest.mark.parametrize("pool_mode", MODES)
def test_a_setting_of_a_failed_transaction_is_gone_too(
    house: EmbeddedServer, make_database: MakeDatabase, pool_mode: str
) -> None:
    alias = make_database(house, max_size=1, pool_mode=pool_mode)
    with pytest.raises(ProgrammingError), atomic(using=alias):
        request_in_block(alias, LEAVES_A_SETTING["SET"], "SELECT no_such_column")
    connections[alias].close()
    assert request(alias, SETTING) == ""


def request_in_block(alias: str, *statements: str) -> None:
    with connections[alias].cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


@pytest.mark.parametrize("pool_mode", MODES)
def test_what_shows_that_it_leaves_nothing_clears_nothing(
    house: EmbeddedServer, make_database: MakeDatabase, pool_mode: str
) -> None:
    alias = make_database(house, max_size=1, pool_mode=pool_mode)
    leave_unseen(alias)
    request(
        alias,
        "SELECT 1",
        "INSERT INTO item (name) VALUES (lower('X'))",
        "BEGIN",
        "SET LOCAL app.tenant TO 'x'",
        "SELECT set_config('app.tenant', 'x', true)",
        "COMMIT",
        "UPDATE item SET name = 'SET x'",
        "SELECT count(*) FROM item",
    )
    assert not was_cleared(alias)


@pytest.mark.parametrize("pool_mode", MODES)
def test_what_receivers_set_up_clears_nothing(
    house: EmbeddedServer, make_database: MakeDatabase, pool_mode: str
) -> None:
    def receiver(connection: Any, **kwargs: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET statement_timeout TO '77s'")

    alias = make_database(house, max_size=1, pool_mode=pool_mode)
    with received(receiver):
        leave_unseen(alias)
        assert request(alias, "SELECT current_setting('statement_timeout')") == "77s"
        assert not was_cleared(alias)


@contextmanager
def received(receiver: Callable[..., None]) -> Iterator[None]:
    connection_created.connect(receiver)
    try:
        yield
    finally:
        connection_created.disconnect(receiver)


@pytest.mark.parametrize("pool_mode", MODES)
def test_a_seed_is_gone_and_what_follows_from_it(
    house: EmbeddedServer, make_database: MakeDatabase, pool_mode: str
) -> None:
    alias = make_database(house, max_size=1, pool_mode=pool_mode)
    follows = request(alias, "SELECT setseed(0.5)", "SELECT random()", "SELECT random()")
    request(alias, "SELECT setseed(0.5)", "SELECT random()")
    assert request(alias, "SELECT random()") != follows
    assert connects(alias) == 1


@pytest.mark.parametrize("pool_mode", MODES)
def test_connections_of_dblink_are_closed(
    house: EmbeddedServer, make_database: MakeDatabase, pool_mode: str
) -> None:
    available = "SELECT count(*) FROM pg_available_extensions WHERE name = 'dblink'"
    alias = make_database(house, max_size=1, pool_mode=pool_mode)
    if not request(alias, available):
        pytest.skip("this server has no dblink")
    administer(house, "CREATE SCHEMA far", 'CREATE EXTENSION dblink SCHEMA "far"')
    try:
        parameters = house.parameters("postgres")
        to = " ".join(f"{key}={value}" for key, value in parameters.items() if key in KEYWORDS)
        connect = f"SELECT far.dblink_connect('{to}'), far.dblink_connect('named', '{to}')"
        listed = "SELECT far.dblink_get_connections()::text"
        ask = "SELECT x FROM far.dblink('SELECT 7') AS t (x int)"
        assert request(alias, connect, listed) == "{named}"
        assert request(alias, listed) is None
        with pytest.raises(OperationalError) as refused:
            request(alias, ask)
        assert isinstance(refused.value.__cause__, psycopg.errors.ConnectionDoesNotExist)
        assert connects(alias) == 1
    finally:
        administer(house, "DROP EXTENSION dblink", "DROP SCHEMA far")


KEYWORDS = ("host", "port", "user", "password", "dbname")


@pytest.mark.parametrize("pool_mode", MODES)
@pytest.mark.parametrize(
    "statements",
    [["LOAD 'plpgsql'"], ["SET app.tenant TO 'x'", "LOAD 'plpgsql'"], ["SELECT 1; LOAD 'plpgsql'"]],
)
def test_a_connection_that_loaded_a_library_is_closed(
    house: EmbeddedServer, make_database: MakeDatabase, pool_mode: str, statements: list[str]
) -> None:
    alias = make_database(house, max_size=1, pool_mode=pool_mode)
    request(alias, *statements)
    assert request(alias, SETTING) == ""
    assert connects(alias) == 2


@pytest.mark.parametrize(
    "statements",
    [["SELECT become('x')"], ["SET app.tenant TO 'x'", "DO $$ BEGIN END $$"]],
)
def test_variables_of_a_procedural_language_do_not_stay(
    house: EmbeddedServer, make_database: MakeDatabase, statements: list[str]
) -> None:
    administer(house, "CREATE LANGUAGE plwithvariables HANDLER plpgsql_call_handler")
    try:
        alias = make_database(house, max_size=1)
        request(alias, "SET app.tenant TO 'x'")
        request(alias, "SELECT 1")
        assert connects(alias) == 1
        request(alias, *statements)
        request(alias, "SELECT 1")
        assert connects(alias) == 2
    finally:
        administer(house, "DROP LANGUAGE plwithvariables")


@pytest.mark.parametrize("server_side_binding", [True, False])
@pytest.mark.parametrize("reset", ["auto", "discard"])
def test_what_psycopg_has_prepared_is_forgotten_with_it(
    house: EmbeddedServer, make_database: MakeDatabase, reset: str, server_side_binding: bool
) -> None:
    options = {"prepare_threshold": 0, "server_side_binding": server_side_binding}
    alias = make_database(house, options=options, max_size=1, reset=reset)
    for _ in range(4):
        assert request(alias, "SET app.tenant TO 'x'", "SELECT 7") == 7
        assert request(alias, "SELECT 7") == 7
    assert connects(alias) == 1


def test_it_is_the_same_for_code_that_asks_the_pool_itself(
    house: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(house, max_size=1)
    for statement in (LEAVES_A_SETTING["SET"], LEAVES_A_SETTING["a function"]):
        connection = pool.checkout()
        connection.execute(statement)
        pool.checkin(connection)
        connection = pool.checkout()
        assert connection.execute(SETTING).fetchone() == ("",)
        pool.checkin(connection)
    assert pool.snapshot().counters.connects == 1


# The other values of the option.


def test_rollback_leaves_the_state_of_the_session_in_session_mode(
    house: EmbeddedServer, make_database: MakeDatabase
) -> None:
    for reset in ("rollback", None):
        alias = make_database(house, max_size=1, reset=reset)
        request(alias, LEAVES_A_SETTING["SET"])
        assert request(alias, SETTING) == "somebody"


def test_rollback_clears_what_is_left_in_transaction_mode(
    house: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(house, max_size=1, reset="rollback", pool_mode="transaction")
    request(alias, LEAVES_A_SETTING["a function"])
    assert request(alias, SETTING) == ""


def test_discard_clears_whatever_was_sent(
    house: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(house, max_size=1, reset="discard")
    leave_unseen(alias)
    assert was_cleared(alias)


@pytest.mark.parametrize("pool_mode", MODES)
def test_a_callable_is_called_at_each_checkin(
    house: EmbeddedServer, make_database: MakeDatabase, pool_mode: str
) -> None:
    found: list[Any] = []

    def reset(connection: psycopg.Connection[Any]) -> None:
        found.append(connection.execute(SETTING).fetchone())

    alias = make_database(house, max_size=1, reset=reset, pool_mode=pool_mode)
    request(alias, "SELECT 1")
    request(alias, LEAVES_A_SETTING["SET"])
    left = "somebody" if pool_mode == "session" else ""
    assert found == [("",), (left,)]


# Roles.


@pytest.mark.parametrize("reset", ["auto", "rollback", "discard", lambda connection: None])
@pytest.mark.parametrize("pool_mode", MODES)
@pytest.mark.parametrize("statement", LEAVES_A_ROLE.values(), ids=LEAVES_A_ROLE)
def test_an_assumed_role_is_there_for_every_request(
    house: EmbeddedServer,
    make_database: MakeDatabase,
    pool_mode: str,
    statement: str,
    reset: Any,
) -> None:
    options = {"assume_role": "app_role"}
    alias = make_database(house, options=options, max_size=1, reset=reset, pool_mode=pool_mode)
    assert request(alias, ROLE) == "app_role"
    request(alias, *statement.split(";; "))
    assert request(alias, ROLE) == "app_role"
    assert connects(alias) == 1


def test_an_assumed_role_is_there_after_a_transaction_that_lost_it(
    house: EmbeddedServer, make_database: MakeDatabase
) -> None:
    options = {"assume_role": "app_role"}
    alias = make_database(house, options=options, max_size=1, reset="rollback")
    with atomic(using=alias):
        request_in_block(alias, "RESET ROLE", "SELECT 1")
    connections[alias].close()
    assert request(alias, ROLE) == "app_role"


@pytest.mark.parametrize("method", ["_configure_connection", "_configure_role"])
def test_a_role_that_a_backend_of_ones_own_assumes_is_there_for_every_request(
    house: EmbeddedServer,
    make_database: MakeDatabase,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    def configure(self: Any, connection: psycopg.Connection[Any]) -> bool:
        getattr(DatabaseWrapper, method)(self, connection)
        connection.execute("SET ROLE app_role")
        return True

    kind = type("DatabaseWrapper", (DatabaseWrapper,), {method: configure})
    alias = make_database(house, max_size=1, reset="rollback")
    monkeypatch.setattr(connections[alias], "__class__", kind)
    assert request(alias, ROLE) == "app_role"
    request(alias, "RESET ROLE")
    assert request(alias, ROLE) == "app_role"


# Sequences.


@pytest.mark.parametrize("pool_mode", MODES)
@pytest.mark.parametrize("ask", ["SELECT lastval()", "SELECT currval('item_id_seq')"])
def test_the_value_that_another_has_drawn_is_not_told(
    house: EmbeddedServer, make_database: MakeDatabase, pool_mode: str, ask: str
) -> None:
    alias = make_database(house, max_size=1, pool_mode=pool_mode)
    draw = "INSERT INTO item (name) VALUES ('x')"
    request(alias, draw)
    with pytest.raises(OperationalError, match="not yet defined in this session"):
        request(alias, ask)
    request(alias, draw)
    with pytest.raises(OperationalError, match="not yet defined in this session"), atomic(alias):
        request_in_block(alias, "SELECT 1", ask)
    connections[alias].close()


@pytest.mark.parametrize("pool_mode", MODES)
def test_the_value_that_a_transaction_has_drawn_itself_is_told(
    house: EmbeddedServer, make_database: MakeDatabase, pool_mode: str
) -> None:
    alias = make_database(house, max_size=1, pool_mode=pool_mode)
    with atomic(using=alias), connections[alias].cursor() as cursor:
        cursor.execute("INSERT INTO item (name) VALUES ('x') RETURNING id")
        [drawn] = cursor.fetchone()
        cursor.execute("SELECT lastval()")
        assert cursor.fetchone() == (drawn,)
    connections[alias].close()
