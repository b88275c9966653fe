"""One checkout of a connection: since when, by which thread, at which line of code, for what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol
from weakref import ref

from django_pooled.activity import NOT_YET, current
from django_pooled.diagnostics.call_site import callers, whereabouts

if TYPE_CHECKING:
    from django_pooled.diagnostics.call_site import Line

    from .connection import PooledConnection
    from .thread_exit import Thread

__all__ = ["Checkout", "Home"]


class Home(Protocol):
    """Takes a connection back that its user did not give back."""

    def left_behind(self, checkout: Checkout) -> None:
        """A thread has ended without giving it back.

        Called in that thread, which `threading` does not know any more: it must not log.
        """

    def take_back(self, checkout: Checkout, connection: PooledConnection) -> bool:
        """Take back a connection that is not referred to any more; tell whether it was in use."""


class Checkout:
    """One connection in use by the thread that makes this.

    It refers to the connection only weakly: one that is not referred to any more is freed, and its
    finalizer tells the pool.

    No lock guards the fields. What changes is one assignment: `connection` and `returning` by who
    has claimed it (see `PooledConnection.claim`), `activity` by its thread, `due` by who looks for
    those that last too long.

    Args:
        connection: The connection.
        asked: The monotonic moment at which the thread began to wait for it.
        now: The monotonic moment at which it gets it.
        thread: The thread.
        home: Takes the connection back; holds the pool while a connection is in use.
        leak_after: Seconds after which it is logged first, with its stack; None for never.
    """

    __slots__ = (
        "activity",
        "connection",
        "due",
        "home",
        "key",
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
        now: float,
        thread: Thread,
        home: Home,
        leak_after: float | None,
    ) -> None:
        self.key: object = object()
        """Tells it from every other checkout. No number: two threads may draw the same one from an
        ``itertools.count()`` without the GIL."""
        self.connection: ref[PooledConnection] = ref(connection)
        self.home: Home = home
        self.since: float = now
        self.waited: float = now - asked
        self.where: Line
        self.activity: str | None
        """The view, task or command that it is for, if that is known by now; else `NOT_YET`."""
        self.where, self.activity = whereabouts(above=2)  # Past Pool.checkout().
        self.stack: list[Line] | None = None
        if leak_after is not None:
            self.due: float = self.since + leak_after
            """When it is logged next."""
            self.stack = callers(above=2)
        self.thread: Thread = thread
        self.returning: bool = False
        """Whether it is being given back."""

    def name_again(self) -> None:
        """Find out what it is for, which was not known as it began: a middleware comes first."""
        self.activity = current.get() or (whereabouts(1)[1] if self.activity == NOT_YET else None)

    def take_back(self, connection: PooledConnection) -> bool:
        """Give back a connection that is not referred to any more; tell whether it was in use."""
        return self.home.take_back(self, connection)
