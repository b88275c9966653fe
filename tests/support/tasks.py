"""Runs coroutines as a process without requests does, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, TypeVar

from asgiref.sync import sync_to_async
from django.db import connections

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["run", "until"]

T = TypeVar("T")


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine function in an event loop of its own."""

    async def whole() -> T:
        try:
            return await main()
        finally:
            # Queries without a decorator are run in one thread for all tasks, which keeps its own.
            await sync_to_async(connections.close_all)()

    return asyncio.run(whole())


async def until(condition: Callable[[], T], timeout: float = 10.0) -> T:
    """Wait until a condition is true, and return its value; other tasks run meanwhile."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {condition}"
        await asyncio.sleep(0.005)
    return value
