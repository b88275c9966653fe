"""How long a pool's probe should wait at most while the server is full: the fleet, by that cap."""

from __future__ import annotations

import random
from functools import partial
from typing import Any, NamedTuple

from _fleet import Clock, Fleet, Ours, Process, Server

from django_pooled.pool.connector import LONGEST_WHEN_FULL

__all__ = ["CAPS", "EXPLAINED", "Seen", "lone_pool", "table"]

CAPS = (0.75, LONGEST_WHEN_FULL, 5.0, 10.0)
STEADY = 60.0
"""Seconds from which on waits have grown as long as they get."""
LONE = 200
"""Times that the pool that is alone is simulated."""

EXPLAINED = """What other caps there could be of a probe's waits while the server is full.
*Full for good*: {instances:,} instances want {wanted:,} connections, and there are {room:,};
connects a second after the first minute, and how many cores of the server refuse them.
*Emptied*: other clients have all connections when the server is back from an outage, and {leave:,}
end each second. *Emptied at once*: {at_once:,} a second, so that it is full for a moment.
*A pool alone* waits for the one connection that is freed: until its request has it."""


class Seen(NamedTuple):
    """What became of a fleet."""

    refused: list[float]
    """When connects were refused for want of room, in seconds from the server's return."""
    last: float
    """Seconds from the server's return until the last instance had its first request served."""


def fleet(cap: float, cost: float, instances: int, seconds: float, **server: Any) -> Seen:
    """Simulate instances of two connections and four threads, after an outage of five seconds."""
    random.seed(1)
    clock, back = Clock(), 5.0
    one = Server(clock, back, cost, cores=16, **server)
    seen = Fleet(clock, think=2.0, hold=0.02)
    for number in range(instances):
        pool = Ours(clock, one, 2, longest_when_full=cap)
        for _ in range(4):
            clock.resume(seen.thread(number, pool))
    clock.run(back + seconds)
    return Seen([at - back for at in one.refused_full], max(seen.first_served.values()) - back)


def lone_pool(cap: float, freed_at: float) -> float:
    """Return the seconds from when a connection is freed until the one who waits has it."""
    clock = Clock()
    server = Server(clock, 0.0, 0.0, 1, max_connections=1, others=1, leave=1 / freed_at)
    pool, served = Ours(clock, server, 0, longest_when_full=cap), []
    pool.size = 1

    def request() -> Process:
        yield from pool.checkout()
        served.append(clock.now)

    clock.resume(request())
    clock.run(freed_at + 2 * cap)
    return served[0] - freed_at


def table(cost: float, refusal: float, instances: int) -> str:
    """Return the explanation and a table in Markdown, with a row for each cap."""
    wanted, room, leave, at_once = 2 * instances, instances * 3 // 2, instances // 20, instances
    full = partial(fleet, cost=cost, instances=instances)
    rows = []
    for cap in CAPS:
        good = full(cap, seconds=2 * STEADY, max_connections=room)
        emptied, soon = (
            full(cap, seconds=2 * STEADY, max_connections=wanted, others=wanted, leave=each)
            for each in (leave, at_once)
        )
        random.seed(1)
        alone = sorted(lone_pool(cap, 20.0) for _ in range(LONE))
        rate = sum(at > STEADY for at in good.refused) / STEADY
        rows.append(
            f"| {cap:g} s{' (ours)' if cap == LONGEST_WHEN_FULL else ''} | {rate:,.0f} "
            f"| {rate * refusal:.2f} | {len(emptied.refused):,} | {emptied.last:.1f} s "
            f"| {len(soon.refused):,} | {soon.last:.1f} s "
            f"| {sum(alone) / LONE:.2f} s | {alone[-1]:.2f} s |"
        )
    head = (
        "| longest wait | full for good: refused/s | cores | emptied: refused | last served "
        "| emptied at once: refused | last served | a pool alone: mean | longest |\n"
        f"|{' ---: |' * 9}"
    )
    told = EXPLAINED.format(
        instances=instances, room=room, wanted=wanted, leave=leave, at_once=at_once
    )
    return "\n".join([told, "", head, *rows])
