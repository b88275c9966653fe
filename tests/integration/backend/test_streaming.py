from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from asgiref.sync import sync_to_async
from django.core.signals import request_finished, request_started
from django.db import connections
from django.db.transaction import atomic
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse

from django_pooled.streaming import ReleaseBeforeStreamingMiddleware
from tests.support.pools import in_use

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase


@pytest.fixture
def alias(server: EmbeddedServer, make_database: MakeDatabase) -> str:
    return make_database(server, max_size=1)


def ask(alias: str, statement: str = "SELECT 42") -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone()[0]


@pytest.fixture
def sqlite(django_db_blocker: Any) -> Iterator[str]:
    """A database of another engine, with a connection."""
    connections.settings["sqlite"] = {
        **connections.settings["default"],
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": ":memory:",
        "OPTIONS": {},
    }
    with django_db_blocker.unblock():
        connections["sqlite"].ensure_connection()
        yield "sqlite"
        # Django's own close() keeps a database that is in memory.
        connections["sqlite"].connection.close()
    del connections["sqlite"]
    del connections.settings["sqlite"]


def respond(view: Callable[[HttpRequest], Any]) -> Any:
    return ReleaseBeforeStreamingMiddleware(view)(HttpRequest())


def test_a_body_that_uses_no_database_holds_no_connection(alias: str) -> None:
    def view(request: HttpRequest) -> StreamingHttpResponse:
        name = str(ask(alias))
        return StreamingHttpResponse(part for part in (name, "!"))

    response = respond(view)
    assert in_use(alias) == 0
    assert b"".join(response) == b"42!"
    assert in_use(alias) == 0


def test_a_body_that_uses_the_database_takes_a_connection_when_it_does(alias: str) -> None:
    held = []

    def body() -> Iterator[str]:
        held.append(in_use(alias))
        yield str(ask(alias))
        held.append(in_use(alias))

    def view(request: HttpRequest) -> StreamingHttpResponse:
        ask(alias)
        return StreamingHttpResponse(body())

    assert b"".join(respond(view)) == b"42"
    assert held == [0, 1]


def test_in_a_request_the_body_takes_one_for_each_transaction(alias: str) -> None:
    held = []

    def body() -> Iterator[str]:
        for _ in range(2):
            with atomic(using=alias):
                yield str(ask(alias))
                held.append(in_use(alias))
            yield str(ask(alias))
            held.append(in_use(alias))

    def view(request: HttpRequest) -> StreamingHttpResponse:
        ask(alias)
        return StreamingHttpResponse(body())

    request_started.send(sender=None)
    assert b"".join(respond(view)) == b"42" * 4
    assert held == [1, 0] * 2
    request_finished.send(sender=None)
    ask(alias)
    assert in_use(alias) == 1


def test_other_responses_keep_theirs_to_the_request_s_end(alias: str) -> None:
    respond(lambda request: HttpResponse(str(ask(alias))))
    assert in_use(alias) == 1


def test_an_open_transaction_keeps_its_connection(alias: str) -> None:
    with atomic(using=alias):
        ask(alias)
        respond(lambda request: StreamingHttpResponse([]))
        assert in_use(alias) == 1


def test_a_server_side_cursor_that_the_view_opened_keeps_its_connection(alias: str) -> None:
    cursors = []

    def view(request: HttpRequest) -> StreamingHttpResponse:
        cursor = connections[alias].chunked_cursor()
        cursor.execute("SELECT generate_series(1, 3)")
        cursors.append(cursor)
        return StreamingHttpResponse(str(row[0]) for row in cursor)

    assert b"".join(respond(view)) == b"123"
    assert in_use(alias) == 1
    cursors.pop().close()
    respond(lambda request: StreamingHttpResponse([]))
    assert in_use(alias) == 0


def test_a_connection_of_another_engine_stays(alias: str, sqlite: str) -> None:
    with connections[sqlite].cursor() as cursor:
        cursor.execute("CREATE TABLE kept (x)")
    respond(lambda request: StreamingHttpResponse([]))
    assert "kept" in connections[sqlite].introspection.table_names()


def test_under_asgi_it_goes_back_in_the_thread_that_holds_it(alias: str) -> None:
    async def body() -> AsyncIterator[str]:
        yield str(await sync_to_async(in_use)(alias))

    async def view(request: HttpRequest) -> StreamingHttpResponse:
        await sync_to_async(ask)(alias)
        return StreamingHttpResponse(body())

    async def request() -> bytes:
        response = await respond(view)
        return b"".join([part async for part in response])

    assert asyncio.run(request()) == b"0"


def test_under_asgi_other_responses_keep_theirs(alias: str) -> None:
    async def view(request: HttpRequest) -> HttpResponse:
        await sync_to_async(ask)(alias)
        return HttpResponse()

    def held_until_now() -> int:
        found = in_use(alias)
        connections[alias].close()
        return found

    async def held() -> int:
        await request_started.asend(sender=None)
        await respond(view)
        found = await sync_to_async(held_until_now)()
        await request_finished.asend(sender=None)
        return found

    assert asyncio.run(held()) == 1
