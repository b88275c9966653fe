"""Connections whose loss psycopg sees before libpq does.

While the kernel takes a reset in, poll() may report an error on the socket before there is anything
to read. psycopg raises an error for that by itself, and libpq knows of nothing yet.
"""

from __future__ import annotations

import select
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.db import OperationalError, connections
from psycopg.pq import ConnStatus

from django_pooled import Backoff, retry_transaction
from tests.support.proxied import Proxied

if TYPE_CHECKING:
    from collections.abc import Callable

    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy
    from tests.support.pools import MakeDatabase

QUICK = Backoff(initial=0.001, maximum=0.002)


class Resets:
    """Resets the connection amid one exchange, of which psycopg hears first.

    Args:
        monkeypatch: pytest's.
        proxy: Through which the connections go.
        is_answered: Whether the server's answer arrives before it.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, proxy: FaultProxy, *, is_answered: bool = False
    ) -> None:
        self.proxy = proxy
        self.is_answered = is_answered
        self.exchanges = 0
        self.strikes_at: int | None = None
        self._wait = psycopg.Connection.wait
        resets = self

        def wait(connection: psycopg.Connection[Any], gen: Any, *args: Any, **kwargs: Any) -> Any:
            return resets._exchange(connection, gen, *args, **kwargs)

        monkeypatch.setattr(psycopg.Connection, "wait", wait)

    def begin(self, strikes_at: int | None = None) -> None:
        """Count exchanges from now on, and strike amid one of them."""
        self.exchanges, self.strikes_at = 0, strikes_at

    def _exchange(self, connection: Any, gen: Any, *args: Any, **kwargs: Any) -> Any:
        number, self.exchanges = self.exchanges, self.exchanges + 1
        if number != self.strikes_at:
            return self._wait(connection, gen, *args, **kwargs)
        try:
            next(gen)  # Which sends.
        except StopIteration as ended:
            # There was nothing to send.
            self.strikes_at = self.exchanges
            return ended.value
        if self.is_answered:
            assert select.select([connection.fileno()], [], [], 20.0)[0]
        self.proxy.cut(reset=True)
        socket_errors = select.poll()
        socket_errors.register(connection.fileno(), 0)
        assert socket_errors.poll(20_000)
        assert connection.pgconn.status == ConnStatus.OK
        raise psycopg.OperationalError("connection socket closed")


@pytest.fixture
def through_proxy(
    server: EmbeddedServer,
    make_proxy: Callable[[EmbeddedServer], FaultProxy],
    make_database: MakeDatabase,
) -> Proxied:
    proxy = make_proxy(server)
    made = Proxied(make_database(server, through=proxy, max_size=2), server, proxy)
    made.ask("DROP TABLE IF EXISTS reset; CREATE TABLE reset (number int)")
    return made


@pytest.mark.parametrize("is_answered", [False, True])
@pytest.mark.parametrize("in_block", [False, True], ids=["", "in a block of psycopg"])
def test_a_decorated_call_takes_effect_once_wherever_it_was(
    through_proxy: Proxied, monkeypatch: pytest.MonkeyPatch, in_block: bool, is_answered: bool
) -> None:
    resets = Resets(monkeypatch, through_proxy.proxy, is_answered=is_answered)
    alias = through_proxy.alias

    @retry_transaction(using=alias, backoff=QUICK)
    def insert(number: int) -> None:
        with connections[alias].cursor() as cursor:
            block = cursor.connection.transaction() if in_block else nullcontext()
            with connections[alias].wrap_database_errors, block:
                cursor.execute("SELECT count(*) FROM reset")
            cursor.execute("INSERT INTO reset VALUES (%s)", [number])

    def call_in_a_new_session(number: int) -> None:
        connections[alias].close()
        through_proxy.proxy.cut()
        insert(number)

    call_in_a_new_session(-1)
    resets.begin()
    call_in_a_new_session(-2)
    exchanges = resets.exchanges
    assert exchanges >= 4  # Learn, SELECT, INSERT, COMMIT; with what a new session is asked.
    for number in range(exchanges):
        connections[alias].close()
        through_proxy.proxy.cut()
        connections[alias].ensure_connection()
        resets.begin(strikes_at=number)
        insert(number)
    rows = "SELECT array_agg(number ORDER BY number) FROM reset WHERE number >= 0"
    assert through_proxy.ask(rows)[0] == list(range(exchanges))
    assert through_proxy.lost_commits.get("committed", 0) <= 1


def test_the_connection_does_not_go_back(
    through_proxy: Proxied, monkeypatch: pytest.MonkeyPatch
) -> None:
    resets, alias = Resets(monkeypatch, through_proxy.proxy), through_proxy.alias
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")
        lost = connections[alias].connection.info.backend_pid
        resets.begin(strikes_at=0)
        with pytest.raises(OperationalError, match="connection socket closed"):
            cursor.execute("SELECT 1")
        resets.begin()
        # As after any other loss between two statements.
        cursor.execute("SELECT pg_backend_pid()")
        assert cursor.fetchone()[0] != lost
    connections[alias].close()
