"""poolstats --watch: looks again and again, and redraws in place as ``top`` does."""

from __future__ import annotations

import shutil
from collections import deque
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Any

from django_pooled.activity import start_thread
from django_pooled.poolstats.findings.overview_findings import find
from django_pooled.poolstats.tables.overview_table import as_table
from django_pooled.poolstats.tables.pool_table import FEW, ORDERS

from .difference import since
from .formatting import cut

if TYPE_CHECKING:
    from django_pooled.poolstats.findings.finding import Finding
    from django_pooled.poolstats.tables.overview_table import Layout

    from .observer import Observer
    from .overview import Overview
    from .terminal import Terminal

__all__ = ["Watch"]

MEMORY = 10.0
"""Seconds that findings look back on, so that rare events do not flicker."""

ALL = 1_000_000
"""More processes than there are."""

HELP = """\
q        quit (Ctrl-C too)
s, S     sort processes by the next or previous of: waiting, in use, checkouts, wait p99, pid
p        show every process; again: only the busiest
c        list the connections; again: how connections came and went
r        reset: count connects, closes, restarts and failures from now on
space    look again at once
?        this help

Waiting and in use are of this moment. The table's checkouts and failures are a second's, its
waits those since the last look. "p99": the time within which 99 of 100 checkouts got their
connection. Figures below the table are since the pools were opened, or since the reset.
docs/poolstats.md explains every figure.\
"""


class Watch:
    """The state of the watch: the looks so far, and what the keys have chosen.

    Args:
        interval: Seconds from look to look.
        layout: The one at the beginning.
    """

    def __init__(self, observer: Observer, interval: float, layout: Layout) -> None:
        self.layout = replace(layout, hint="p shows all")
        self._observer = observer
        self._interval = interval
        self._looks: deque[Overview] = deque()
        self._baseline: Overview | None = None
        self._help = False
        self._looking = False
        self._taken: list[Overview | BaseException] = []

    def run(self, terminal: Terminal) -> None:
        """Draw, and follow the keys until the user quits."""
        self._draw(terminal)
        due = monotonic()
        while True:
            if not self._looking and monotonic() >= due:
                due = monotonic() + self._interval
                self._look()
            key = terminal.key(1.0 if self._looking else due - monotonic())
            if key in ("q", "Q") and not self._help:
                return
            if key == " ":
                due = monotonic()
            if self.press(key) | self._collect() | terminal.resized:
                terminal.resized = False
                self._draw(terminal)

    def press(self, key: str) -> bool:
        """Do what a key stands for, and tell whether there is something to redraw."""
        orders = list(ORDERS)
        if self._help and key:
            self._help = False
        elif key == "?":
            self._help = True
        elif key in ("s", "S"):
            step = 1 if key == "s" else -1
            index = (orders.index(self.layout.order) + step) % len(orders)
            self.layout = replace(self.layout, order=orders[index])
        elif key == "p":
            processes = ALL if self.layout.processes is None else None
            self.layout = replace(self.layout, processes=processes)
        elif key == "c":
            self.layout = replace(self.layout, connections=not self.layout.connections)
        elif key == "r" and self._looks:
            self._baseline = self._looks[-1]
        else:
            return False
        return True

    def add(self, overview: Overview) -> None:
        """Add a look, and forget those that are too old to compare with."""
        self._looks.append(overview)
        while len(self._looks) > 2 and overview.taken - self._looks[1].taken >= MEMORY:
            self._looks.popleft()

    def frame(self, columns: int, height: int) -> list[str]:
        """Return the lines of the screen."""
        if self._help:
            return [cut(line, columns) for line in HELP.splitlines()[:height]]
        if not self._looks:
            return ["Looking ..."]
        now = self._looks[-1]
        earlier = list(self._looks)[:-1]
        total = since(now, self._baseline) if self._baseline not in (None, now) else now
        last = since(now, earlier[-1]) if earlier else None
        recent = since(now, earlier[0]) if earlier else None
        found = find(now, recent)
        # The last line is for the keys.
        room = height - 1
        lines = self._lines(total, found, last, columns, room)
        shown = [line if "\x1b" in line else cut(line, columns) for line in lines]
        if len(shown) > room:
            hidden = cut(f"... and {len(shown) - room + 1} more lines", columns)
            shown = [*shown[: max(0, room - 1)], hidden][:room]
        return [*shown, *[""] * (room - len(shown)), cut(self._footer(), columns)]

    def _lines(
        self,
        total: Overview,
        found: list[Finding],
        last: Overview | None,
        columns: int,
        room: int,
    ) -> list[str]:
        """Leave out the least busy processes, then the details, until the lines fit."""

        def laid_out(**changes: Any) -> list[str]:
            return as_table(total, found, replace(layout, **changes), recent=last)

        layout = replace(self.layout, width=columns)
        lines = laid_out()
        if len(lines) <= room or not total.groups:
            return lines
        if layout.processes is None:
            most, attempts = FEW, [(True, 3), (False, 1)]
        else:
            # A user who asked for processes has less use for the details.
            most, attempts = layout.processes, [(False, 1)]
        for details, fewest in attempts:
            lines = laid_out(details=details, processes=min(fewest, most))
            if (left := room - len(lines)) >= 0:
                processes = min(fewest + left // len(total.groups), most)
                return laid_out(details=details, processes=processes)
        return lines

    def _footer(self) -> str:
        since_reset = "" if self._baseline is None else ", counting since the reset"
        return (
            f"q quit  s sort ({self.layout.order})  p processes  c connections  r reset  ? help"
            f"{since_reset}"
        )

    def _draw(self, terminal: Terminal) -> None:
        columns, height = shutil.get_terminal_size()
        terminal.draw(self.frame(columns, height))

    def _look(self) -> None:
        """Take a look in another thread, so that keys work meanwhile."""

        def take() -> None:
            try:
                self._taken.append(self._observer.take())
            except BaseException as error:
                self._taken.append(error)

        self._looking = True
        start_thread(take, "poolstats")

    def _collect(self) -> bool:
        """Add the look of the other thread, and tell whether there was one."""
        if not self._taken:
            return False
        taken = self._taken.pop()
        self._looking = False
        if isinstance(taken, BaseException):
            raise taken
        self.add(taken)
        return True
