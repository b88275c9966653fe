"""What the workers are asked to do by decorated coroutine functions."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.db import connection
from django.db.models import F
from django.http import JsonResponse

from django_pooled import retry_transaction
from tests.app.models import Counter

from .views import LONG, query

if TYPE_CHECKING:
    from django.http import HttpRequest


@retry_transaction(max_attempts=50)
async def add_one(name: str) -> None:
    """Add one to a counter, with time for other tasks between the statements."""
    await Counter.objects.aget_or_create(name=name)
    await asyncio.sleep(0.002)
    await Counter.objects.filter(name=name).aupdate(value=F("value") + 1)


@retry_transaction(max_attempts=50)
async def add(request: HttpRequest, name: str) -> JsonResponse:
    """Add one to a counter."""
    await add_one(name)
    return JsonResponse({"pid": os.getpid()})


async def add_after_query(request: HttpRequest, name: str) -> JsonResponse:
    """Query first: in session mode the request keeps the connection of that."""
    await Counter.objects.acount()
    return await add(request, name)


def _place() -> list[Any]:
    """Return backend and transaction."""
    return [connection.in_atomic_block, *query("SELECT pg_backend_pid(), txid_current()")]


async def beside(request: HttpRequest, name: str) -> JsonResponse:
    """Make two calls that are under way at once; tell where each of their steps was run."""
    begun = [asyncio.Event(), asyncio.Event()]

    @retry_transaction
    async def one(number: int) -> list[list[Any]]:
        places = [await sync_to_async(_place)()]
        begun[number].set()
        await begun[1 - number].wait()
        await add_one(f"{name}-{number}")
        places.append(await within())
        places.append(await sync_to_async(retry_transaction(_place))())
        return places

    @retry_transaction
    async def within() -> list[Any]:
        return await sync_to_async(_place)()

    async def outside() -> bool:
        for each in begun:
            await each.wait()
        (in_block, *_) = await sync_to_async(_place)()
        return bool(in_block)

    *calls, in_block = await asyncio.gather(one(0), one(1), outside())
    return JsonResponse({"calls": calls, "outside": in_block})


@retry_transaction
async def long(request: HttpRequest, name: str, what: str) -> JsonResponse:
    """Add one to a counter, and then wait for long: for the database, or for something else."""
    await Counter.objects.acreate(name=name)
    if what == "asleep":
        await asyncio.sleep(25)
    else:
        await sync_to_async(query)(LONG[what])
    return JsonResponse({})


async def value(request: HttpRequest, name: str) -> JsonResponse:
    """Return a counter."""
    found = await Counter.objects.filter(name=name).afirst()
    return JsonResponse({"value": found and found.value})
