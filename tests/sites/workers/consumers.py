"""What the workers are asked to do by websockets, and a stream of events, all by Channels."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from asgiref.sync import sync_to_async
from channels.db import database_sync_to_async
from channels.generic.http import AsyncHttpConsumer
from channels.generic.websocket import AsyncWebsocketConsumer, WebsocketConsumer
from django.db.models import F

from django_pooled import arun_transaction, registry, retry_transaction
from tests.app.models import Counter

from .coroutines import add_one
from .views import query

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

LOCK = 71
"""Of the database, advisory: what some messages wait for."""


def _raise(name: str) -> None:
    Counter.objects.get_or_create(name=name)
    Counter.objects.filter(name=name).update(value=F("value") + 1)


@retry_transaction(max_attempts=50)
def _add(name: str) -> None:
    _raise(name)


@retry_transaction(max_attempts=50)
async def _add_by_channels(name: str) -> None:
    # Channels closes the thread's connections before the call and after it.
    await database_sync_to_async(Counter.objects.get_or_create)(name=name)
    await asyncio.sleep(0.002)
    await database_sync_to_async(_raise)(name)


async def _add_and_wait(name: str) -> None:
    async def work() -> None:
        await Counter.objects.acreate(name=name)
        await sync_to_async(query)("SELECT pg_advisory_xact_lock(%s)", LOCK)

    await arun_transaction(work)


WAYS: dict[str, Callable[[str], Awaitable[object]]] = {
    "orm": lambda _: Counter.objects.acount(),
    "channels": lambda _: database_sync_to_async(Counter.objects.count)(),
    "asgiref": lambda _: sync_to_async(Counter.objects.count)(),
    "thread": lambda _: asyncio.to_thread(Counter.objects.count),
    "add": add_one,
    "add by channels": _add_by_channels,
    "add in thread": database_sync_to_async(_add),
    "add and wait": _add_and_wait,
}
"""What a message may ask for. All that add do so in a decorated call."""

SYNC_WAYS: dict[str, Callable[[str], object]] = {
    "orm": lambda _: Counter.objects.count(),
    "add": _add,
}


class Messages(AsyncWebsocketConsumer):
    """Answers each message when that is done."""

    async def receive(self, text_data: str = "", bytes_data: bytes = b"") -> None:
        way, _, name = text_data.partition(":")
        await WAYS[way](name)
        await self.send(text_data)


class SynchronousMessages(WebsocketConsumer):
    """As `Messages`, in a thread."""

    def receive(self, text_data: str = "", bytes_data: bytes = b"") -> None:
        way, _, name = text_data.partition(":")
        SYNC_WAYS[way](name)
        self.send(text_data)


class Events(AsyncHttpConsumer):
    """Sends how many connections are in use after each of some queries."""

    async def handle(self, body: bytes) -> None:
        await self.send_headers(headers=[(b"Content-Type", b"text/event-stream")])
        for _ in range(self.scope["url_route"]["kwargs"]["count"]):
            await Counter.objects.acount()
            in_use = sum(pool.in_use for pool in registry.snapshots())
            await self.send_body(b"%d\n" % in_use, more_body=True)
            await asyncio.sleep(0.01)
        await self.send_body(b"")
