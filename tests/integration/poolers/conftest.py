"""Fixtures of tests with a pooler between the pool and the server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from django.db import connections

from tests.support.ledger import THREADS, Ledger

if TYPE_CHECKING:
    from django_pooled.pool.pool import Pool
    from embedded_postgres import EmbeddedServer
    from tests.servers.pooler import Pooler
    from tests.support.poolers import MakeLedger, MakePoolBehind
    from tests.support.pools import MakeDatabase, MakePool


@pytest.fixture(scope="module")
def server(private_server: EmbeddedServer) -> EmbeddedServer:
    """A server that tests of one file stop and start; it runs again after each."""
    return private_server


@pytest.fixture
def make_ledger(server: EmbeddedServer, make_database: MakeDatabase) -> MakeLedger:
    """Make a database that Django reaches through a pooler."""

    def make(pooler: Pooler, our_mode: str = "session", **pool: Any) -> Ledger:
        alias = make_database(server, pool_mode=our_mode, **{"max_size": THREADS, **pool})
        connections.settings[alias].update(HOST=pooler.host, PORT=pooler.port)
        return Ledger(alias, server)

    return make


@pytest.fixture
def make_pool_behind(server: EmbeddedServer, make_pool: MakePool) -> MakePoolBehind:
    """Make a pool that leads to a pooler, and as Django prepares no statement."""

    def make(pooler: Pooler, parameters: dict[str, Any] | None = None, **options: Any) -> Pool:
        leading = {**pooler.parameters("postgres"), **(parameters or {})}
        return make_pool(server, parameters=leading, **options)

    return make
