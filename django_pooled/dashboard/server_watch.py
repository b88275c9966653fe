"""Asks one database while there are viewers, and closes the connection after the last."""

from __future__ import annotations

import threading
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from django_pooled.activity import start_thread
from django_pooled.poolstats.server.view import ServerProbe, ServerView

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = ["Answer", "ServerWatch"]

PATIENCE = 3.0
"""Seconds after which a server is said not to answer: one that is far away connects slowly."""

LINGER = 10.0
"""Seconds without a viewer after which the connection is closed."""


class Answer(NamedTuple):
    """The latest view of a server, and how many seconds ago it was asked."""

    view: ServerView
    age: float | None
    """None if it has not answered yet: the view is empty then."""


class ServerWatch:
    """One connection, outside the pool, and the thread that waits for the server's answers.

    Because of the thread a frozen server delays no other; it ends with the connection.

    Args:
        wrapper: Whose connection parameters are used; it is not connected itself.
        linger: Seconds without a viewer after which the connection is closed.
        patience: Seconds after which the server is said not to answer.
    """

    def __init__(
        self, wrapper: BaseDatabaseWrapper, *, linger: float = LINGER, patience: float = PATIENCE
    ) -> None:
        self.alias = wrapper.alias
        self._probe = ServerProbe(wrapper)
        self._linger, self._patience = linger, patience
        self._changed = threading.Condition()
        self._wanted = False
        """Whether a viewer has asked; guarded by the condition's lock, as all below."""
        self._thread: threading.Thread | None = None
        self._view = ServerView(self.alias)
        self._asked: float | None = None
        """When the view was asked for."""

    @property
    def open(self) -> bool:
        """Whether there may be a connection."""
        return self._thread is not None

    def want(self) -> float:
        """Begin to ask, and return that moment, for `latest`."""
        with self._changed:
            moment = monotonic()
            self._wanted = True
            if self._thread is None:
                name = f"django_pooled.watches.{self.alias}"
                self._thread = start_thread(self._run, name)
            self._changed.notify_all()
        return moment

    def latest(self, since: float, timeout: float) -> Answer:
        """Return an answer to a question asked since then, or after *timeout* the one before.

        Args:
            since: What `want` returned.
            timeout: Seconds to wait for it.
        """
        with self._changed:
            self._changed.wait_for(lambda: (self._asked or 0.0) >= since, max(0.0, timeout))
            age = None if self._asked is None else monotonic() - self._asked
            return Answer(self._view, age)

    def _run(self) -> None:
        open_question = False
        while True:
            with self._changed:
                if not open_question:
                    self._changed.wait_for(lambda: self._wanted, self._linger)
                if not self._wanted and not open_question:
                    # Under the lock, so that the next thread finds it closed.
                    self._probe.close()
                    self._thread = None
                    return
                self._wanted = False
            asked = monotonic()
            self._probe.start(self._patience)
            view = self._probe.wait(self._patience)
            # A connection that waits for its server can't be closed: the thread stays until the
            # server answers or the system gives the connection up.
            open_question = monotonic() - asked >= self._patience
            with self._changed:
                self._view, self._asked = view, asked
                self._changed.notify_all()
