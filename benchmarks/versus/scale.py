"""How much of everything is done, and what the workloads share."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .contestants import ALL, named
from .outcome import Metric

__all__ = ["CPU", "DIRECT", "MICRO", "MILLI", "P99", "POOLS", "RATE", "WALL", "Scale"]

MICRO, MILLI = 1e6, 1e3
DIRECT = [who for who in ALL if not who.gevent]
POOLS = named(
    (
        *("native pool", "native pool, checks", "dj_db_conn_pool", "ours, session"),
        *("ours, transaction", "persistent, PgBouncer transaction"),
        "ours, session, PgBouncer transaction",
    )
)
WALL = Metric("p50", "wall, µs", MICRO)
CPU = Metric("cpu", "CPU of the client, µs", MICRO)
P99 = Metric("p99", "p99, µs", MICRO)
RATE = Metric("rate", "requests/s", more_is_better=True)


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    rounds: int = 30
    """Turns of each in workloads whose turns are short."""
    cycles: int = 150
    """Requests in such a turn."""
    long_rounds: int = 9
    """Turns of each in workloads whose turns are long."""
    seconds: float = 0.8
    """How long those take."""
    launches: int = 3
    """How often all processes are started anew, which share the rounds: what a request takes
    depends on where the kernel has put client and server, for as long as they live."""

    @property
    def of_a_launch(self) -> Scale:
        """What each of them has to do."""
        rounds, long_rounds = (
            max(1, count // self.launches) for count in (self.rounds, self.long_rounds)
        )
        return replace(self, rounds=rounds, long_rounds=long_rounds)

    @classmethod
    def quick(cls) -> Scale:
        """A minute or two for all, to see that it works."""
        return cls(3, 50, 2, 0.5, launches=1)
