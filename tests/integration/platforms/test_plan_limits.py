"""Plans with few connections, as a role's limit on Heroku-likes: who waits, who fails."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.core.checks.database import check_database_backends
from django.db import connections

from django_pooled.errors import CheckoutTimeout
from tests.servers.postgresql import backend_count
from tests.support.pools import fill, query
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django_pooled.pool.pool import Pool
    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase, MakePool

LIMIT = 4


@pytest.fixture
def tenant(server: EmbeddedServer) -> Iterator[dict[str, Any]]:
    """A role of whose plan no more sessions are part."""
    with psycopg.connect(**server.parameters(), autocommit=True) as admin:
        admin.execute(f"CREATE ROLE tenant LOGIN PASSWORD 'a' CONNECTION LIMIT {LIMIT}")
        yield {"user": "tenant", "password": "a"}
        admin.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = 'tenant'"
        )
        admin.execute("DROP ROLE tenant")


@pytest.fixture
def make_dyno(
    server: EmbeddedServer, make_pool: MakePool, tenant: dict[str, Any]
) -> Callable[..., Pool]:
    """Make pools as processes of one site have them; none knows of the others."""

    def make(**options: Any) -> Pool:
        return make_pool(server, parameters=tenant, **{"min_size": 0, **options})

    return make


def test_a_process_beyond_the_plan_s_limit_waits_for_room_and_says_why(
    make_dyno: Callable[..., Pool],
) -> None:
    first = make_dyno(max_size=LIMIT)
    fill(first, LIMIT)
    late = make_dyno(max_size=LIMIT, timeout=0.5)
    with pytest.raises(CheckoutTimeout, match='too many connections for role "tenant"'):
        query(late)
    # The old release has ended.
    first.close(timeout=2.0)
    wait_until(lambda: query(late) == 42)


def test_a_pool_that_the_limit_cuts_short_serves_all_from_what_it_has(
    server: EmbeddedServer, make_dyno: Callable[..., Pool]
) -> None:
    first = make_dyno(max_size=LIMIT)
    fill(first, LIMIT - 1)
    second = make_dyno(max_size=LIMIT, timeout=60.0)

    def ask(_: int) -> Any:
        return query(second)

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, range(100))) == [42] * 100
    assert second.snapshot().counters.timeouts == 0
    assert backend_count(server, "postgres") >= LIMIT


def test_pools_that_close_what_is_idle_leave_room_for_each_other(
    make_dyno: Callable[..., Pool],
) -> None:
    first = make_dyno(max_size=LIMIT, max_idle=0.5)
    fill(first, LIMIT)
    second = make_dyno(max_size=LIMIT, timeout=60.0)
    assert query(second) == 42


def test_the_check_adds_up_what_one_dyno_may_open(
    server: EmbeddedServer,
    make_database: MakeDatabase,
    tenant: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(connections.settings["default"], "HOST", "elsewhere.invalid")
    monkeypatch.delenv("GUNICORN_CMD_ARGS", raising=False)

    def warned(workers: int) -> list[str]:
        monkeypatch.setenv("WEB_CONCURRENCY", str(workers))
        alias = make_database(server, max_size=2)
        connections.settings[alias].update(USER=tenant["user"], PASSWORD=tenant["password"])
        found = check_database_backends(databases=[alias])
        return [each.msg for each in found if each.id == "django_pooled.W010"]

    assert warned(workers=LIMIT // 2) == []
    [message] = warned(workers=LIMIT // 2 + 1)
    assert "tenant" in message
