"""One deadline for all that a request retries, on top of each call's own."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["request_deadline", "retry_deadline"]

request_deadline: ContextVar[float] = ContextVar("django_pooled_retry_deadline", default=inf)
"""The monotonic instant after which no attempt starts."""


@contextmanager
def retry_deadline(seconds: float) -> Iterator[None]:
    """Let no attempt of ``retry_transaction`` start in this block after *seconds*.

    For a middleware that knows how long the client or the proxy in front waits. It follows the
    request into ``sync_to_async`` and ``asyncio.to_thread``; of nested ones the earliest counts.

    Args:
        seconds: From now on.

    Raises:
        ValueError: *seconds* is not above 0.
    """
    if not seconds > 0:
        raise ValueError(f"retry_deadline({seconds!r}); expected seconds above 0")
    token = request_deadline.set(min(monotonic() + seconds, request_deadline.get()))
    try:
        yield
    finally:
        request_deadline.reset(token)
