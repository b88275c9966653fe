"""Sessions that Supavisor ends: with internal_error, for whatever reason, which its words tell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from django.db import DatabaseError, connections
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory

from django_pooled import retry_transaction
from django_pooled.middleware import DatabaseUnavailableMiddleware
from tests.support.pools import query

if TYPE_CHECKING:
    from django_pooled.pool.connection import PooledConnection
    from django_pooled.stats.snapshot import PoolSnapshot
    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy, StatementFaultKind
    from tests.support.pools import MakeDatabase, MakePool

CLOSED = "(EDBHANDLEREXITED) connection to database closed. Check logs for more information"
NONE_FREE = (
    "(ECHECKOUTTIMEOUT) unable to check out connection from the pool after 60000ms "
    "in transaction mode"
)


def ask(alias: str) -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 42")
        [found] = cursor.fetchone()
        return found


def snapshot(alias: str) -> PoolSnapshot:
    pool = connections[alias].pool  # type: ignore[attr-defined]
    return pool.snapshot()  # type: ignore[no-any-return]


@pytest.fixture
def alias(server: EmbeddedServer, proxy: FaultProxy, make_database: MakeDatabase) -> str:
    made = make_database(server, through=proxy, max_size=2)
    assert ask(made) == 42
    connections[made].close()
    return made


@pytest.mark.parametrize("words", [CLOSED, NONE_FREE])
def test_a_view_whose_session_was_ended_is_answered_503(
    alias: str, proxy: FaultProxy, words: str
) -> None:
    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse(str(ask(alias)))

    middleware: Any = DatabaseUnavailableMiddleware(view)
    proxy.fault_at("SELECT 42", "refused", message=words)
    request = RequestFactory().get("/")
    try:
        response = middleware(request)
    except DatabaseError as error:
        response = middleware.process_exception(request, error)
    assert response.status_code == 503
    connections[alias].close()
    assert ask(alias) == 42
    connections[alias].close()


@pytest.mark.parametrize("words", [CLOSED, NONE_FREE])
def test_a_session_that_is_ended_during_its_configuration_is_waited_out(
    server: EmbeddedServer, proxy: FaultProxy, make_pool: MakePool, words: str
) -> None:
    def configure(connection: PooledConnection) -> None:
        connection.execute("SET DateStyle TO 'ISO'")

    proxy.fault_at("SET DateStyle", "refused", message=words, times=3)
    pool = make_pool(server, through=proxy, min_size=0, timeout=60.0, configure=configure)
    assert query(pool) == 42
    assert pool.snapshot().counters.connect_failures == 3


def test_a_decorated_call_whose_session_was_ended_runs_again(alias: str, proxy: FaultProxy) -> None:
    calls: list[int] = []

    @retry_transaction(using=alias)
    def call() -> Any:
        calls.append(1)
        return ask(alias)

    proxy.fault_at(".*SELECT 42", "refused", message=CLOSED)
    assert call() == 42
    assert len(calls) == 2
    connections[alias].close()


@pytest.mark.parametrize(("kind", "attempts"), [("refused", 2), ("answer_lost", 1)])
def test_a_commit_at_which_the_session_was_ended_takes_effect_once(
    server: EmbeddedServer,
    alias: str,
    proxy: FaultProxy,
    kind: StatementFaultKind,
    attempts: int,
) -> None:
    calls: list[int] = []

    def execute(statement: str) -> Any:
        with connections[alias].cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchone()[0] if cursor.description else None

    @retry_transaction(using=alias)
    def order() -> None:
        calls.append(1)
        execute("INSERT INTO ordered VALUES (1)")

    execute("CREATE TABLE ordered (n int)")
    try:
        fault = proxy.fault_at_commit(kind, message=CLOSED)
        order()
        assert [hit.fault for hit in proxy.hits()] == [fault]
        assert (len(calls), execute("SELECT count(*) FROM ordered")) == (attempts, 1)
    finally:
        execute("DROP TABLE ordered")
        connections[alias].close()


def test_a_decorated_call_that_got_no_session_in_time_does_not_queue_again(
    alias: str, proxy: FaultProxy
) -> None:
    calls: list[int] = []

    @retry_transaction(using=alias)
    def call() -> Any:
        calls.append(1)
        return ask(alias)

    proxy.fault_at(".*SELECT 42", "refused", message=NONE_FREE, times=5)
    with pytest.raises(DatabaseError, match="unable to check out connection"):
        call()
    assert len(calls) == 1
    connections[alias].close()
    assert snapshot(alias).counters.pooler_timeouts == 1
    proxy.disarm()
    assert ask(alias) == 42
    connections[alias].close()
