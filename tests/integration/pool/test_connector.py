from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING

import psycopg

from django_pooled.pool.connector import LONGEST_WHEN_FULL
from tests.support.pools import query
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakePool


def test_a_full_server_is_left_in_peace_and_a_connection_that_it_frees_is_found(
    make_server: Callable[..., EmbeddedServer], make_pool: MakePool
) -> None:
    limits = {"max_connections": "6", "superuser_reserved_connections": "0"}
    server = make_server(settings=limits)
    # The connection that found the server ready may be ending yet.
    others = [
        wait_until(lambda: psycopg.connect(**server.parameters("postgres"))) for _ in range(6)
    ]
    knocked_at: list[float] = []

    def password() -> str:
        knocked_at.append(time.monotonic())
        return str(server.parameters("postgres")["password"])

    pool = make_pool(
        server,
        max_size=1,
        min_size=0,
        parameters={"password": password},
        backoff={"initial": 0.05, "maximum": 0.05, "jitter": False},
    )
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(query, pool)
        try:
            wait_until(lambda: pool.snapshot().counters.connect_failures >= 6)
            assert "too many clients already" in (pool.snapshot().last_error or "")
        finally:
            for other in others:
                other.close()
        freed_at = time.monotonic()
        assert answer.result(2 * LONGEST_WHEN_FULL) == 42
    assert knocked_at[-1] - freed_at < LONGEST_WHEN_FULL
    waited = [later - at for at, later in pairwise(knocked_at[1:])]
    assert len(waited) >= 5
    assert all(wait >= 0.99 * 0.05 * 2**number for number, wait in enumerate(waited))
