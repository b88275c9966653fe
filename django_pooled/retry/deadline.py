"""One deadline for all that a request retries, on top of each call's own."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["earliest", "retry_deadline"]

_deadline: ContextVar[float | None] = ContextVar("django_pooled_retry_deadline", default=None)


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
    token = _deadline.set(earliest(monotonic() + seconds))
    try:
        yield
    finally:
        _deadline.reset(token)


def earliest(deadline: float) -> float:
    """Return *deadline*, or that of the block around if it comes first."""
    around = _deadline.get()
    return deadline if around is None else min(deadline, around)
