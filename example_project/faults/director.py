"""Keeps the site's server running, and does to it what the buttons of the page ask for."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from typing import TYPE_CHECKING, Any

import psycopg

from . import audit
from .burst import AT_ONCE, VOTES, Burst
from .channel import Line, Switchboard
from .crew import Crew
from .freezing import Freezer

if TYPE_CHECKING:
    from collections.abc import Callable

    from tabs_vs_spaces.address import Address

    from embedded_postgres import EmbeddedServer

TO_THE_SERVER = ("freeze", "thaw", "restart", "kill")
ORDERS = (*TO_THE_SERVER, "backends", "hostage", "release", "cast")
REMEMBERED = 30
"""Events that are kept to be shown."""
SPARE_THREADS = 8
"""Threads of a worker that the votes leave to whoever watches and presses buttons."""


class Refused(Exception):
    """This can't be done, or not now; the message says why."""


class Director:
    """The part of ``serve`` that takes orders from the workers, and tells them what came of it.

    What is done to the server is done by :meth:`work`, which also starts the server again when it
    is gone: so the two never meet.

    Args:
        say: Prints a line for whoever ran ``serve``.
        server: The embedded server; None for one that is not ours to stop.
        url: The site's database.
        address: Where the site listens.
        threads: How many each worker has.
        takes_orders: False where nobody may break anything.
    """

    def __init__(
        self,
        *,
        say: Callable[[str], None],
        server: EmbeddedServer | None,
        url: str,
        address: Address,
        threads: int,
        takes_orders: bool,
    ) -> None:
        self._say = say
        self._server = server
        self._url = url
        self._address = address
        self._threads = threads
        self._freezer = Freezer()
        self._crew = Crew(lambda: self.note("All connections that were held are free again."))
        self._burst: Burst | None = None
        self._events: list[dict[str, Any]] = []
        self._tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._is_down = False
        # Calls have threads of their own: for what looks at the state and then changes it.
        self._ordering = threading.Lock()
        self._noting = threading.Lock()
        self._switchboard = Switchboard(self._take_call) if takes_orders else None

    @property
    def socket(self) -> str | None:
        """Where the workers call; None where no orders are taken."""
        return str(self._switchboard.path) if self._switchboard else None

    def work(self, seconds: float) -> None:
        """Wait that long for something to be done to the server, do it, and have it running.

        Raises:
            ServerError: The server does not start again.
        """
        if self._freezer.has_thawed():
            self.note("PostgreSQL goes on: its time was over.", "thaw")
        with contextlib.suppress(queue.Empty):
            self._tasks.get(timeout=seconds)()
        if self._server is not None and not self._server.running:
            self._is_down = True
            # Someone wanted to see what the pools make of it.
            self.note("PostgreSQL ended. Starting it again ...")
            self._server.start()
            self._is_down = False
            self.note("PostgreSQL is back.")

    def note(self, text: str, mark: str | None = None) -> None:
        """Print what happened, and keep it for the page, whose charts are marked with one word."""
        self._say(text)
        with self._noting:
            event = {"at": time.time(), "text": text, "mark": mark}
            self._events = [*self._events, event][-REMEMBERED:]

    def close(self) -> None:
        """Undo what lasts, and take no more orders; may be called twice."""
        if self._burst is not None:
            self._burst.stop()
        self._freezer.thaw()
        if self._switchboard is not None:
            self._switchboard.close()

    def state(self) -> dict[str, Any]:
        """Return all that the page shows."""
        burst = self._burst
        return {
            "ours": self._server is not None,
            "server": self._server_state(),
            "frozen_left": self._freezer.left,
            "workers": len(self._crew),
            "held": self._crew.held,
            "held_left": self._crew.left,
            "votes": burst.figures() if burst else None,
            "events": self._events,
        }

    def order(self, what: str, seconds: float) -> None:
        """Do one of the things in ``ORDERS``, or begin to.

        Raises:
            Refused: It can't be done, or not now.
        """
        if what not in ORDERS:
            raise Refused(f"Nobody here knows how to {what}.")
        if what in TO_THE_SERVER and self._server is None:
            raise Refused("The server that DATABASE_URL names is not ours to touch.")
        if what in TO_THE_SERVER and self._is_down:
            raise Refused("PostgreSQL is down just now.")
        with self._ordering:
            getattr(self, f"_{what}")(seconds)

    # To the server, and so by work()

    def _freeze(self, seconds: float) -> None:
        if self._freezer.left is not None:
            raise Refused("PostgreSQL is frozen already.")

        def freeze(server: EmbeddedServer) -> None:
            self._freezer.freeze(server.pid, seconds)
            self.note(f"Froze PostgreSQL, for {seconds:g} s unless it is thawed before.", "freeze")

        self._do(freeze)

    def _thaw(self, seconds: float) -> None:
        if self._freezer.left is None:
            raise Refused("PostgreSQL is not frozen.")

        def thaw(server: EmbeddedServer) -> None:
            self._freezer.thaw()
            self.note("Thawed PostgreSQL.", "thaw")

        self._do(thaw)

    def _restart(self, seconds: float) -> None:
        def restart(server: EmbeddedServer) -> None:
            self._freezer.thaw()
            self.note("Restarting PostgreSQL ...", "restart")
            # It is started again by whoever finds it gone.
            server.stop()

        self._do(restart)

    def _kill(self, seconds: float) -> None:
        def kill(server: EmbeddedServer) -> None:
            server.kill()
            self._freezer.thaw()
            self.note("Killed PostgreSQL and all its backends with SIGKILL.", "SIGKILL")

        self._do(kill)

    def _do(self, task: Callable[[EmbeddedServer], None]) -> None:
        server = self._server
        assert server is not None
        self._tasks.put(
            lambda: task(server) if server.running else self.note("It is down already.")
        )

    def _server_state(self) -> str:
        if self._server is None:
            return "elsewhere"
        if self._freezer.left is not None:
            return "frozen"
        return "down" if self._is_down else "running"

    # To the site

    def _backends(self, seconds: float) -> None:
        if self._freezer.left is not None:
            raise Refused("PostgreSQL is frozen, and can't end its backends.")

        def end() -> None:
            names = self._crew.session_names()
            try:
                with audit.connect(self._url) as connection:
                    ended = audit.end_sessions(connection, names)
            except psycopg.Error as error:
                self.note(f"The backends could not be ended: {error}")
            else:
                self.note(f"Ended {ended} backends of the site.", "backends")

        # To connect may take seconds, in which PostgreSQL is killed, for example.
        threading.Thread(target=end, daemon=True).start()

    def _hostage(self, seconds: float) -> None:
        if self._crew.left is not None:
            raise Refused("The pools are held already.")
        workers = len(self._crew)
        self.note(f"Holding all connections of {workers} workers for {seconds:g} s.", "hold")
        self._crew.take(seconds)

    def _release(self, seconds: float) -> None:
        if self._crew.left is None:
            raise Refused("Nothing is held.")
        self._crew.take(0)
        self.note("Released the connections.", "release")

    def _cast(self, seconds: float) -> None:
        if self._burst is not None and self._burst.running:
            raise Refused("Votes are being cast already.")
        self.note(f"Casting {VOTES} votes ...", "votes")
        at_once = max(1, min(AT_ONCE, self._threads - SPARE_THREADS))
        self._burst = Burst(
            self._address,
            self._url,
            at_once=at_once,
            seconds=seconds,
            ended=self._cast_ended,
        )

    def _cast_ended(self, burst: Burst) -> None:
        figures = burst.figures()
        named = ("confirmed", "refused", "unknown", "lost", "doubled")
        self.note(f"Votes: {', '.join(f'{figures[name]} {name}' for name in named)}.")

    # From the workers

    def _take_call(self, line: Line) -> None:
        for message in line:
            what = message["order"]
            if what == "listen":
                self._crew.listen(message["pid"], line)
                return
            try:
                if what != "look":
                    self.order(what, message["seconds"])
            except Refused as error:
                line.send({"refused": str(error)})
            else:
                line.send(self.state())
