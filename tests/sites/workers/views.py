"""What the workers are asked to do."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.db import OperationalError, connection, transaction
from django.db.models import F
from django.http import JsonResponse, StreamingHttpResponse

from django_pooled import registry, retry_transaction
from django_pooled.replay.clients import client_has_gone
from tests.app.models import Counter
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from django.http import HttpRequest


def query(statement: str, *parameters: Any) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return cursor.fetchone()


def _double(number: int) -> dict[str, int]:
    # Two statements that only the same connection answers alike, with time for others between.
    with transaction.atomic():
        (first,) = query("SELECT pg_backend_pid() FROM pg_sleep(0.002)")
        result, second = query("SELECT 2 * %s, pg_backend_pid()", number)
    assert first == second
    return {"result": result, "backend": second, "pid": os.getpid()}


def double(request: HttpRequest, number: int) -> JsonResponse:
    """Have the database double a number; tell which process and backend did it."""
    return JsonResponse(_double(number))


def add(request: HttpRequest, name: str) -> JsonResponse:
    """Add one to a counter."""
    with transaction.atomic():
        Counter.objects.get_or_create(name=name)
        Counter.objects.filter(name=name).update(value=F("value") + 1)
    return JsonResponse({"pid": os.getpid()})


LONG = {
    "sleep": "SELECT pg_sleep(25)",
    "compute": "SELECT count(*) FROM (SELECT generate_series(1, 4000000000)) AS numbers",
}


def long(request: HttpRequest, way: str, what: str) -> JsonResponse:
    """Have the database busy for long."""

    def work() -> Any:
        return query(LONG[what])

    ways = {
        "autocommit": work,
        "atomic": transaction.atomic(work),
        "decorated": retry_transaction(work),
    }
    return JsonResponse({"result": str(ways[way]())})


async def async_long(request: HttpRequest, way: str, what: str) -> JsonResponse:
    """As ``long``, in a thread of the event loop's."""
    return await sync_to_async(long)(request, way, what)


def slow(request: HttpRequest, seconds: str) -> JsonResponse:
    """Spend some time in a transaction, then answer as ``double`` does."""
    with transaction.atomic():
        query("SELECT pg_sleep(%s)", float(seconds))
        return JsonResponse(_double(1))


def rows(request: HttpRequest, count: int) -> StreamingHttpResponse:
    """Stream numbers, each from a query of its own, slowly."""

    def numbers() -> Iterator[str]:
        for number in range(count):
            yield f"{query('SELECT %s::int FROM pg_sleep(0.01)', number)[0]}\n"

    return StreamingHttpResponse(numbers())


def pools(request: HttpRequest) -> JsonResponse:
    """Tell how this process's pool stands, without using it."""
    # Long enough for a process with several waiting requests to leave some to its neighbour.
    time.sleep(0.02)
    found = registry.snapshots()
    return JsonResponse(
        {
            "pid": os.getpid(),
            "parent": os.getppid(),
            "pools": [
                {
                    "size": pool.size,
                    "idle": pool.idle,
                    "in_use": pool.in_use,
                    "waiting": pool.waiting,
                    "connecting": pool.connecting,
                    "checkouts": pool.counters.checkouts,
                    "returned": pool.counters.checkins + pool.counters.discarded,
                    "reclaimed": pool.counters.reclaimed,
                }
                for pool in found
            ],
        }
    )


_seen: dict[str, list[bool | None]] = {}
_outcomes: dict[str, dict[str, Any]] = {}


@retry_transaction
def _see_client(request: HttpRequest, name: str, wait: bool) -> None:
    if wait:
        wait_until(lambda: client_has_gone(request))
    seen = _seen.setdefault(name, [])
    seen.append(client_has_gone(request))
    if len(seen) == 1:
        query("SELECT pg_terminate_backend(pg_backend_pid())")


def client(request: HttpRequest, name: str, what: str) -> JsonResponse:
    """Fail the first time, once the client has gone if that is to be waited for."""
    if what == "outcome":
        return JsonResponse(_outcomes.get(name, {}))
    try:
        _see_client(request, name, wait=what == "wait")
    except OperationalError as error:
        notes = getattr(error, "__notes__", None)
        _outcomes[name] = {"attempts": len(_seen[name]), "notes": notes}
        raise
    return JsonResponse({"attempts": len(_seen[name]), "gone": _seen[name]})


class Digests:
    """What attempts have read, held by an object that no attempt puts back."""

    def __init__(self) -> None:
        self.found: list[str] = []


@retry_transaction
def _digest(request: HttpRequest, how: str, digests: Digests) -> None:
    if how == "read":
        content = b"".join(iter(lambda: request.read(1000), b""))
    elif how == "upload":
        content = request.FILES["file"].read()  # type: ignore[union-attr]
    else:
        content = request.body
    digests.found.append(sha256(content).hexdigest())
    if len(digests.found) == 1:
        query("SELECT pg_terminate_backend(pg_backend_pid())")


def body(request: HttpRequest, how: str) -> JsonResponse:
    """Read the body in two attempts, in one of several ways; tell the digests."""
    digests = Digests()
    _digest(request, how, digests)
    return JsonResponse({"digests": digests.found})


async def async_double(request: HttpRequest, number: int) -> JsonResponse:
    """``double`` as a coroutine that calls synchronous code."""
    return JsonResponse(await sync_to_async(_double)(number))


async def async_add(request: HttpRequest, name: str) -> JsonResponse:
    """Add one to a counter by the asynchronous ORM, and count the counters of that name."""
    await Counter.objects.aget_or_create(name=name)
    await Counter.objects.filter(name=name).aupdate(value=F("value") + 1)
    return JsonResponse({"count": await Counter.objects.filter(name=name).acount()})


async def async_slow(request: HttpRequest, seconds: str) -> JsonResponse:
    """``slow`` as a coroutine, which is cancelled when the client goes away."""
    await sync_to_async(query)("SELECT pg_sleep(%s)", float(seconds))
    return JsonResponse(await sync_to_async(_double)(1))


async def async_rows(request: HttpRequest, count: int) -> StreamingHttpResponse:
    """``rows`` from an asynchronous iterator."""

    async def numbers() -> AsyncIterator[str]:
        for number in range(count):
            row = await sync_to_async(query)("SELECT %s::int FROM pg_sleep(0.01)", number)
            yield f"{row[0]}\n"

    return StreamingHttpResponse(numbers())


async def events(request: HttpRequest, count: int) -> StreamingHttpResponse:
    """Stream how many connections are in use after each of some queries."""

    async def messages() -> AsyncIterator[str]:
        for _ in range(count):
            await Counter.objects.acount()
            yield f"{sum(pool.in_use for pool in registry.snapshots())}\n"
            await asyncio.sleep(0.01)

    await Counter.objects.acount()
    return StreamingHttpResponse(messages(), content_type="text/event-stream")


_executor = ThreadPoolExecutor(8)


async def in_threads(request: HttpRequest, count: int, way: str) -> JsonResponse:
    """Query in some threads at once that live on, begun in one of several ways."""
    barrier = threading.Barrier(count)

    def work() -> int:
        barrier.wait(10.0)
        return Counter.objects.count()

    begin: dict[str, Callable[[], Awaitable[int]]] = {
        "to_thread": lambda: asyncio.to_thread(work),
        "insensitive": sync_to_async(work, thread_sensitive=False),
        "executor": lambda: asyncio.wrap_future(_executor.submit(work)),
    }
    answers = await asyncio.gather(*[begin[way]() for _ in range(count)])
    return JsonResponse({"answers": answers})
