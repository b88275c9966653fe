"""Who takes part: a way to have connections, with its settings."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ALL", "NATIVE", "NATIVE_CHECKS", "OURS", "OURS_TRANSACTION", "Contestant", "named"]

DJANGO = "django.db.backends.postgresql"
DJ_POOL = "dj_db_conn_pool.backends.postgresql"
GEVENT_POOL = "django_db_geventpool.backends.postgresql_psycopg3"
ALONE = "psycopg"

Bouncer = Literal["session", "transaction"]


@dataclass(frozen=True)
class Contestant:
    """One way to have connections."""

    name: str
    engine: str
    settings: dict[str, Any] = field(default_factory=dict)
    """What differs in the entry of DATABASES."""
    pool: dict[str, Any] | None = None
    """OPTIONS["pool"], but for its sizes."""
    bouncer: Bouncer | None = None
    """The mode of the PgBouncer between it and the server."""
    gevent: bool = False

    @property
    def is_ours(self) -> bool:
        return self.engine == "django_pooled"

    @property
    def is_bounded(self) -> bool:
        """Whether connections are limited, however many threads ask."""
        return self.pool is not None or self.engine in (DJ_POOL, GEVENT_POOL) or bool(self.bouncer)

    def missing(self) -> str | None:
        """Say what keeps it from taking part, or None."""
        needed = [self.engine.partition(".")[0]] + ["gevent"] * self.gevent
        for module in needed:
            if importlib.util.find_spec(module) is None:
                return f"the package {module} is not installed"
        return None

    def entry(self, size: int, least: int = 1, **pool: Any) -> dict[str, Any]:
        """Return its entry of DATABASES, but for the server's address.

        Args:
            size: most connections, for those that have a limit.
            least: connections kept open.
            pool: further options, for ours.
        """
        entry = {"ENGINE": self.engine, "OPTIONS": {}, **self.settings}
        if self.pool is not None:
            sizes = {"min_size": least, "max_size": size, "timeout": 60.0}
            ours = pool if self.is_ours else {}
            entry["OPTIONS"] = {"pool": {**sizes, **self.pool, **ours}}
        elif self.engine == DJ_POOL:
            entry["POOL_OPTIONS"] = {"POOL_SIZE": size, "MAX_OVERFLOW": 0, "TIMEOUT": 60}
        elif self.engine == GEVENT_POOL:
            entry["OPTIONS"] = {"MAX_CONNS": size, "REUSE_CONNS": size}
        return entry


PERSISTENT = {"CONN_MAX_AGE": None}
CHECKS = {"CONN_HEALTH_CHECKS": True}

PSYCOPG = Contestant("psycopg alone", ALONE)
PER_REQUEST = Contestant("per request", DJANGO)
NATIVE = Contestant("native pool", DJANGO, pool={})
NATIVE_CHECKS = Contestant("native pool, checks", DJANGO, CHECKS, pool={})
OURS = Contestant("ours, session", "django_pooled", pool={})
OURS_TRANSACTION = Contestant(
    "ours, transaction", "django_pooled", pool={"pool_mode": "transaction"}
)

ALL = (
    PSYCOPG,
    PER_REQUEST,
    Contestant("persistent", DJANGO, PERSISTENT),
    Contestant("persistent, checks", DJANGO, PERSISTENT | CHECKS),
    NATIVE,
    NATIVE_CHECKS,
    Contestant("dj_db_conn_pool", DJ_POOL),
    OURS,
    OURS_TRANSACTION,
    *(
        Contestant(f"{name}, PgBouncer {mode}", engine, settings, pool, mode)
        for mode in ("session", "transaction")
        for name, engine, settings, pool in (
            ("per request", DJANGO, {}, None),
            ("persistent", DJANGO, PERSISTENT, None),
            ("ours, session", "django_pooled", {}, {}),
        )
    ),
    Contestant("django-db-geventpool, gevent", GEVENT_POOL, gevent=True),
    Contestant("persistent, gevent", DJANGO, PERSISTENT, gevent=True),
    Contestant("ours, session, gevent", "django_pooled", pool={}, gevent=True),
)


def named(names: Iterable[str]) -> list[Contestant]:
    """Return those of these names, in the order of ALL."""
    wanted = set(names)
    return [contestant for contestant in ALL if contestant.name in wanted]
