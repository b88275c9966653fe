"""One checkout of a connection: since when, by which thread, at which line of code, for what."""

from __future__ import annotations

from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Protocol
from weakref import ref

from django_pooled.activity import current
from django_pooled.diagnostics.call_site import caller, callers

if TYPE_CHECKING:
    from django_pooled.diagnostics.call_site import Line

    from .connection import PooledConnection
    from .thread_exit import Thread

__all__ = ["Checkout", "Home"]

_numbers = count()


class Home(Protocol):
    """The pool that a connection was checked out of."""

    def left_behind(self, checkout: Checkout) -> None:
        """A thread has ended without giving it back.

        Called in that thread, which is no more as far as threading knows: it must not log.
        """

    def take_back(self, checkout: Checkout, connection: PooledConnection) -> bool:
        """Bring back what nobody can use any more; return whether it was in use until now."""


class Checkout:
    """One connection in use by the thread that makes this.

    It refers to the connection only weakly: what nobody can use any more is freed, which is how
    the pool learns of it.

    Args:
        connection: What it got.
        asked: The monotonic moment at which it began to ask for one.
        thread: Which thread that is.
        home: The pool, which is held for as long as something is in use.
        leak_after: Seconds after which it is logged first, with its stack; None for never.
    """

    __slots__ = (
        "activity",
        "connection",
        "due",
        "home",
        "number",
        "returning",
        "since",
        "stack",
        "thread",
        "waited",
        "where",
    )

    def __init__(
        self,
        connection: PooledConnection,
        asked: float,
        thread: Thread,
        home: Home,
        leak_after: float | None,
    ) -> None:
        self.number: int = next(_numbers)
        self.connection: ref[PooledConnection] = ref(connection)
        self.home: Home = home
        self.since: float = monotonic()
        self.waited: float = self.since - asked
        self.where: Line = caller(above=4)  # Past Usage.begin() and Pool.checkout().
        self.stack: list[Line] | None = None
        if leak_after is not None:
            self.due: float = self.since + leak_after
            """When it is logged next."""
            self.stack = callers(above=4)
        self.thread: Thread = thread
        self.activity: str | None = current.get()
        """What it is for, where something has named it."""
        self.returning: bool = False
        """Whether it is being given back."""

    def take_back(self, connection: PooledConnection) -> bool:
        """Bring back a connection that nobody can use any more; tell whether it was in use."""
        return self.home.take_back(self, connection)
