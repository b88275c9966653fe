"""Fixtures: pools by themselves, and databases that Django reaches through one."""

from __future__ import annotations

import gc
import itertools
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from django.db import connections

from django_pooled import registry
from django_pooled.backend.credentials import resolved
from django_pooled.backend.options import parse
from django_pooled.pool import garbage_collection
from django_pooled.pool.pool import Pool
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django_pooled.stats.snapshot import PoolSnapshot
    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy


class MakePool(Protocol):
    def __call__(
        self, server: EmbeddedServer, through: FaultProxy | None = None, **options: Any
    ) -> Pool: ...


class MakeDatabase(Protocol):
    def __call__(
        self,
        server: EmbeddedServer,
        through: FaultProxy | None = None,
        options: dict[str, Any] | None = None,
        database: str = "postgres",
        **pool: Any,
    ) -> str: ...


def query(pool: Pool, statement: str = "SELECT 42") -> Any:
    """Check out, ask, check in."""
    connection = pool.checkout()
    try:
        row = connection.execute(statement).fetchone()
        assert row is not None
        return row[0]
    finally:
        pool.checkin(connection)


def snapshot_of(alias: str) -> PoolSnapshot:
    """Describe the one pool of a database in this process."""
    (found,) = (pool for pool in registry.snapshots() if pool.alias == alias)
    return found


def reconnect(pool: Pool) -> None:
    """Have the next request open a connection."""
    connection = pool.checkout()
    connection.session.doom("for the test")
    pool.checkin(connection)
    del connection
    assert query(pool) == 42


def fill(pool: Pool, size: int) -> None:
    """Have *size* connections idle."""
    found = [pool.checkout() for _ in range(size)]
    for connection in found:
        pool.checkin(connection)
    assert pool.gauges().idle == size


@pytest.fixture(autouse=True)
def nothing_left_in_use() -> Iterator[None]:
    """Whatever a test did, nothing is in use after it but what the test's own thread holds."""
    yield
    # Threads that the test has ended may still be giving theirs back.
    wait_until(lambda: in_use() == held_by_this_thread(), what=f"no more: {registry.snapshots()}")


def in_use(alias: str | None = None) -> int:
    """Count the connections in use, of one database or of all."""
    pools = registry.snapshots()
    return sum(pool.in_use for pool in pools if alias is None or pool.alias == alias)


def held_by_this_thread() -> int:
    # Django keeps the connection of a thread until a request ends there, which is never here.
    return sum(wrapper.connection is not None for wrapper in connections.all(initialized_only=True))


def nothing_in_use(alias: str) -> bool:
    return all(pool.in_use == 0 for pool in registry.snapshots() if pool.alias == alias)


@pytest.fixture
def make_pool() -> Iterator[MakePool]:
    """Make pools that belong to the test, to the database 'postgres' of a server."""
    made: list[Pool] = []

    def make(server: EmbeddedServer, through: FaultProxy | None = None, **options: Any) -> Pool:
        found = {"timeout": 10.0, **options}
        overrides = found.pop("parameters", {})
        configure = found.pop("configure", lambda connection: None)
        credentials_change = found.pop("credentials_change", False)
        parameters = {**server.parameters("postgres"), "autocommit": True, "connect_timeout": 5}
        if through is not None:
            parameters["port"] = through.port
        parameters.update(overrides)
        parsed = parse("default", {"OPTIONS": {"pool": found}})
        pool = Pool(
            "default",
            parsed,
            parameters=partial(resolved, parameters, parsed.credentials),
            configure=configure,
            server="the test's server",
            credentials_change=credentials_change,
            connect_timeout=parameters["connect_timeout"],
            target=parameters.get("target_session_attrs", ""),
        )
        pool.open()
        made.append(pool)
        return pool

    yield make
    for pool in made:
        in_use = pool.gauges().in_use
        pool.close(timeout=2.0)
        assert in_use == 0


_numbers = itertools.count()


@pytest.fixture
def make_database(django_db_blocker: Any) -> Iterator[MakeDatabase]:
    """Make aliases under which Django reaches a database of a server."""
    aliases: list[str] = []

    def make(
        server: EmbeddedServer,
        through: FaultProxy | None = None,
        options: dict[str, Any] | None = None,
        database: str = "postgres",
        **pool: Any,
    ) -> str:
        # Never twice: a thread that Django keeps for async views, or that a test has left behind,
        # goes on with the settings that it has seen under an alias.
        alias = f"made_{next(_numbers)}"
        settings = {
            **connections.settings["default"],
            **server.django_settings(),
            "NAME": database,
            "OPTIONS": {**(options or {}), "pool": {"timeout": 10.0, **pool}},
        }
        if through is not None:
            settings["PORT"] = through.port
        connections.settings[alias] = settings
        aliases.append(alias)
        return alias

    with django_db_blocker.unblock():
        yield make
        for alias in aliases:
            connections[alias].close()
            wait_until(partial(nothing_in_use, alias))
            registry.close_pools_of(alias, timeout=2.0)
            del connections[alias]
            del connections.settings[alias]


@pytest.fixture
def no_garbage_collection(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is collected but on demand, and then always."""
    gc.collect()
    gc.disable()
    monkeypatch.setattr(garbage_collection, "SHARE", 1e9)
    monkeypatch.setattr(garbage_collection, "_next_at", float("-inf"))
    yield
    gc.enable()
