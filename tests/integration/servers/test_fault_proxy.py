from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from embedded_postgres import free_port
from tests.servers.fault_proxy import FaultProxy
from tests.servers.postgresql import backend_count, backend_pids, stopped
from tests.servers.statement_faults import statements
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from embedded_postgres import EmbeddedServer

NAME = "through the proxy"


class Through:
    """Connects through the proxy."""

    def __init__(self, server: EmbeddedServer, proxy: FaultProxy) -> None:
        self.server, self.proxy = server, proxy

    def connect(self, **more: Any) -> psycopg.Connection[Any]:
        arguments = {**self.server.parameters(), "port": self.proxy.port, "application_name": NAME}
        return psycopg.connect(**{**arguments, "connect_timeout": 5, **more})

    def backends(self) -> list[int]:
        return backend_pids(self.server, "postgres", application_name=NAME)


@pytest.fixture
def through(server: EmbeddedServer, proxy: FaultProxy) -> Through:
    return Through(server, proxy)


@pytest.fixture
def table(server: EmbeddedServer) -> Any:
    with psycopg.connect(**server.parameters(), autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS written")
        connection.execute("CREATE TABLE written (value int)")
        yield lambda: len(connection.execute("SELECT * FROM written").fetchall())
        connection.execute("DROP TABLE written")


def test_it_passes_everything_on_and_counts(through: Through, proxy: FaultProxy) -> None:
    before = time.monotonic()
    with through.connect(autocommit=True) as connection:
        row = connection.execute("SELECT repeat('x', 3000000)").fetchone()
        assert row is not None
        assert len(row[0]) == 3_000_000
        assert proxy.established() == 1
    with through.connect():
        pass
    first, second = proxy.connects()
    assert before < first < second < time.monotonic()
    wait_until(lambda: proxy.established() == 0)


def test_down_refuses_new_connections_and_keeps_the_old(
    through: Through, proxy: FaultProxy
) -> None:
    with through.connect() as connection:
        port = proxy.port
        proxy.down()
        with pytest.raises(psycopg.OperationalError, match="refused"):
            through.connect()
        connection.execute("SELECT 1")
        proxy.forward()
        assert proxy.port == port
        through.connect().close()
    assert len(proxy.connects()) == 2


def test_deaf_accepts_and_never_answers(through: Through, proxy: FaultProxy) -> None:
    proxy.deaf()
    with pytest.raises(psycopg.OperationalError, match="timeout"):
        through.connect(connect_timeout=2)
    assert len(proxy.connects()) == 1
    proxy.forward()
    through.connect().close()


def test_frozen_connections_stay_open_and_go_on_later(through: Through, proxy: FaultProxy) -> None:
    with through.connect(autocommit=True) as connection:
        proxy.freeze()
        connection.pgconn.send_query(b"SELECT 1")
        connection.pgconn.flush()
        time.sleep(0.2)
        connection.pgconn.consume_input()
        assert connection.pgconn.is_busy()
        assert backend_count(through.server, "postgres", application_name=NAME, state="idle") == 1
        proxy.forward()
        result = connection.pgconn.get_result()
        assert result is not None
        assert result.get_value(0, 0) == b"1"
        assert connection.pgconn.get_result() is None


def test_delay_holds_every_chunk_back_each_way(through: Through, proxy: FaultProxy) -> None:
    with through.connect(autocommit=True) as connection:
        proxy.delay(0.1)
        started = time.monotonic()
        connection.execute("SELECT 1")
        assert time.monotonic() - started >= 0.2
        proxy.delay(0)


@pytest.mark.parametrize("sslmode", ["disable", "prefer"])
def test_refused_logins_hear_the_words_that_were_given(
    through: Through, proxy: FaultProxy, sslmode: str
) -> None:
    with through.connect() as established:
        proxy.refuse_logins("nobody is let in", "XX000")
        with pytest.raises(psycopg.OperationalError, match="FATAL:  nobody is let in"):
            through.connect(sslmode=sslmode)
        established.execute("SELECT 1")
    proxy.forward()
    through.connect().close()


def test_a_suspension_ends_connections_and_the_first_new_one_ends_it(
    through: Through, proxy: FaultProxy
) -> None:
    with through.connect() as established:
        assert proxy.suspend(0.5) == 1
        with pytest.raises(psycopg.OperationalError, match="closed the connection"):
            established.execute("SELECT 1")
    time.sleep(0.6)  # Nobody wakes it.
    started = time.monotonic()
    through.connect().close()
    assert time.monotonic() - started >= 0.5
    through.connect().close()


def test_forgotten_connections_stay_open_and_silent_beside_new_ones(
    through: Through, proxy: FaultProxy
) -> None:
    with through.connect(autocommit=True) as old, through.connect(autocommit=True) as new:
        assert proxy.forget() == 2
        with through.connect(autocommit=True) as newer:
            assert newer.execute("SELECT 42").fetchone() == (42,)
        old.pgconn.send_query(b"SELECT 1")
        assert select.select([old.fileno(), new.fileno()], [], [], 0.5) == ([], [], [])
        old.pgconn.finish()


def test_cut_ends_what_is_established(through: Through, proxy: FaultProxy) -> None:
    with through.connect() as one, through.connect():
        assert proxy.cut() == 2
        assert proxy.established() == 0
        with pytest.raises(psycopg.OperationalError, match="closed the connection"):
            one.execute("SELECT 1")
        wait_until(lambda: not through.backends())
    through.connect().close()


def test_cut_ends_with_fin_or_reset(proxy: FaultProxy) -> None:
    # On bare sockets: libpq has the same words for both.
    with socket.create_connection((proxy.host, proxy.port), timeout=5) as client:
        wait_until(lambda: proxy.established() == 1)
        proxy.cut()
        assert client.recv(1) == b""
    with socket.create_connection((proxy.host, proxy.port), timeout=5) as client:
        wait_until(lambda: proxy.established() == 1)
        proxy.cut(reset=True)
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_retarget_leads_new_connections_elsewhere(
    through: Through, proxy: FaultProxy, make_server: Callable[..., EmbeddedServer]
) -> None:
    other = make_server()
    proxy.retarget(other.host, other.port)
    with through.connect(password=other.password) as connection:
        row = connection.execute("SHOW port").fetchone()
        assert row == (str(other.port),)


def fail_to_commit(through: Through) -> None:
    """Write a row, and lose the connection at COMMIT."""
    connection = through.connect()
    connection.execute("INSERT INTO written VALUES (1)")
    with pytest.raises(psycopg.OperationalError):
        connection.commit()
    connection.close()


def test_a_commit_that_is_refused_never_happened(
    through: Through, proxy: FaultProxy, table: Callable[[], int]
) -> None:
    proxy.fault_at_commit("refused")
    fail_to_commit(through)
    wait_until(lambda: not through.backends())
    assert (proxy.triggered(), table()) == (1, 0)


def test_a_commit_whose_answer_is_lost_did_happen(
    through: Through, proxy: FaultProxy, table: Callable[[], int]
) -> None:
    proxy.fault_at_commit("answer_lost")
    fail_to_commit(through)
    assert (proxy.triggered(), table()) == (1, 1)
    # One was armed: the next goes through.
    with through.connect() as unharmed:
        unharmed.execute("INSERT INTO written VALUES (2)")
    assert table() == 2


def test_a_stranded_commit_leaves_its_transaction_open_until_it_is_released(
    through: Through, proxy: FaultProxy, table: Callable[[], int]
) -> None:
    proxy.fault_at_commit("stranded")
    fail_to_commit(through)
    state = "idle in transaction"
    assert backend_count(through.server, "postgres", application_name=NAME, state=state) == 1
    assert table() == 0
    assert proxy.release() == 1
    wait_until(lambda: table() == 1)
    proxy.cut()
    wait_until(lambda: not through.backends())


def test_statements_are_recognised_in_the_extended_protocol_too(
    through: Through, proxy: FaultProxy, table: Callable[[], int]
) -> None:
    proxy.fault_at(r"insert\s+into written", "answer_lost", times=2)
    for _ in range(2):
        with (
            through.connect(autocommit=True) as connection,
            pytest.raises(psycopg.OperationalError),
        ):
            connection.execute("INSERT INTO written VALUES (%s)", [1])
    assert (proxy.triggered(), table()) == (2, 2)


def test_a_statement_in_pieces_is_recognised(
    through: Through, proxy: FaultProxy, table: Callable[[], int]
) -> None:
    proxy.fault_at(r"INSERT\b", "refused")
    with through.connect(autocommit=True) as connection, pytest.raises(psycopg.OperationalError):
        connection.execute(f"INSERT INTO written VALUES (1) /* {'x' * 3_000_000} */")
    assert (proxy.triggered(), table()) == (1, 0)


def commit_after_an_insert(through: Through) -> None:
    connection = through.connect()
    try:
        connection.execute("INSERT INTO written VALUES (1)")
        connection.commit()
    finally:
        connection.close()


def test_a_commit_that_is_cut_off_reaches_the_server(
    through: Through, proxy: FaultProxy, table: Callable[[], int]
) -> None:
    proxy.fault_at_commit("cut")
    with pytest.raises(psycopg.OperationalError):
        commit_after_an_insert(through)
    wait_until(lambda: not through.backends())
    assert (proxy.triggered(), table()) == (1, 1)


@pytest.mark.parametrize(
    ("told", "seen"), [({"messages": 1}, 12), ({"octets": 3}, 3), ({"messages": 9}, 17)]
)
def test_of_an_answer_the_client_may_see_a_part(
    through: Through, proxy: FaultProxy, told: dict[str, int], seen: int
) -> None:
    # CommandComplete "COMMIT" is 12 bytes, ReadyForQuery 6, of which the last is never sent.
    connection = through.connect()
    connection.execute("SELECT 1")
    proxy.fault_at_commit("answer_lost", **told)
    raw = socket.socket(fileno=connection.pgconn.socket)
    raw.settimeout(5)
    raw.sendall(b"Q\0\0\0\x0bCOMMIT\0")
    answer = b""
    while chunk := raw.recv(100):
        answer += chunk
    raw.detach()
    connection.close()
    assert answer == b"C\0\0\0\x0bCOMMIT\0Z\0\0\0\x05I"[:seen]


def test_a_black_hole_swallows_the_answer_and_stays_silent(
    through: Through, proxy: FaultProxy, table: Callable[[], int]
) -> None:
    proxy.fault_at_commit("swallowed", silence=0.3)
    started = time.monotonic()
    with pytest.raises(psycopg.OperationalError):
        commit_after_an_insert(through)
    assert time.monotonic() - started >= 0.3
    assert table() == 1
    assert len(through.backends()) == 1
    assert proxy.abandon(older_than=100) == 0
    assert proxy.abandon() == 1
    wait_until(lambda: not through.backends())


def test_a_stranded_commit_that_is_abandoned_never_happened(
    through: Through, proxy: FaultProxy, table: Callable[[], int]
) -> None:
    proxy.fault_at_commit("stranded", silence=0.1)
    with pytest.raises(psycopg.OperationalError):
        commit_after_an_insert(through)
    assert proxy.release(older_than=100) == 0
    assert proxy.abandon() == 1
    wait_until(lambda: not through.backends())
    assert table() == 0


def test_a_silence_lasts_until_the_client_is_hung_up_on(
    through: Through, proxy: FaultProxy, table: Callable[[], int]
) -> None:
    proxy.fault_at_commit("swallowed", silence=60.0)
    connection = through.connect()
    connection.execute("INSERT INTO written VALUES (1)")
    connection.pgconn.send_query(b"COMMIT")
    connection.pgconn.flush()
    wait_until(lambda: table() == 1)
    connection.pgconn.consume_input()
    assert connection.pgconn.is_busy()
    assert proxy.hang_up() == 1
    with pytest.raises(psycopg.OperationalError):
        connection.pgconn.consume_input()
    connection.close()
    assert len(through.backends()) == 1
    assert proxy.hang_up() == 0
    assert proxy.abandon() == 1


def test_a_commit_is_recognised_within_a_longer_message(
    through: Through, proxy: FaultProxy, table: Callable[[], int]
) -> None:
    proxy.fault_at_commit("answer_lost")
    connection = through.connect(autocommit=True)
    with pytest.raises(psycopg.OperationalError):
        connection.execute("BEGIN; INSERT INTO written VALUES (1); /* ; */ COMMIT; SELECT 1")
    connection.close()
    assert (proxy.triggered(), table()) == (1, 1)


def test_a_prepared_statement_is_recognised_where_it_is_executed(
    through: Through, proxy: FaultProxy, table: Callable[[], int]
) -> None:
    with through.connect(autocommit=True) as connection:
        insert = "INSERT INTO written VALUES (%s)"
        for number in range(2):
            connection.execute(insert, [number], prepare=True)
        proxy.fault_at("INSERT", "refused")
        with pytest.raises(psycopg.OperationalError):
            connection.execute(insert, [2], prepare=True)
    assert (proxy.triggered(), table()) == (1, 2)


def test_in_a_pipeline_earlier_answers_arrive_and_that_of_commit_is_lost(
    through: Through, proxy: FaultProxy, table: Callable[[], int]
) -> None:
    connection = through.connect()
    connection.execute("INSERT INTO written VALUES (1)")
    proxy.fault_at_commit("answer_lost")

    def ask_and_commit() -> None:
        with connection.pipeline() as pipeline:
            cursor = connection.execute("SELECT 42")
            pipeline.sync()
            assert cursor.fetchone() == (42,)
            connection.commit()

    with pytest.raises(psycopg.OperationalError):
        ask_and_commit()
    connection.close()
    assert (proxy.triggered(), table()) == (1, 1)


def test_faults_are_tried_in_their_order_and_can_be_told_apart(
    through: Through, proxy: FaultProxy, table: Callable[[], int]
) -> None:
    begin = proxy.fault_at("BEGIN", "refused")
    commit = proxy.fault_at_commit("refused")
    for _ in range(2):
        with pytest.raises(psycopg.OperationalError):
            commit_after_an_insert(through)
    assert [hit.fault for hit in proxy.hits()] == [begin, commit]
    assert len({hit.backend_pid for hit in proxy.hits()}) == 2
    proxy.fault_at_commit("refused")
    proxy.disarm()
    commit_after_an_insert(through)
    assert table() == 1


def test_statements_are_cut_where_a_semicolon_ends_them() -> None:
    text = """-- COMMIT;
    SELECT 'it''s; COMMIT', "a;b", $x$;COMMIT$x$ ; /* no;
    COMMIT */ COMMIT"""
    assert list(statements(text)) == [
        "SELECT 'it''s; COMMIT', \"a;b\", $x$;COMMIT$x$",
        "COMMIT",
    ]


def test_a_process_of_its_own_ends_when_it_is_closed(server: EmbeddedServer) -> None:
    with FaultProxy(server.host, server.port, listen=free_port()) as proxy:
        assert proxy.process.usable
    assert proxy.process.returncode == 0
    assert not proxy.process.usable


def test_proxies_of_one_process_know_nothing_of_each_other(
    server: EmbeddedServer, make_proxy: Callable[[EmbeddedServer], FaultProxy]
) -> None:
    first, second = make_proxy(server), make_proxy(server)
    assert first.process is second.process
    first.fault_at("SELECT 1", "refused")
    first.delay(0.01)
    second.fault_at("SELECT 2", "refused")
    with psycopg.connect(**{**server.parameters(), "port": second.port}) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
        first.close()
        assert connection.execute("SELECT 3").fetchone() == (3,)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 2")
    assert second.triggered() == 1
    with pytest.raises(psycopg.OperationalError, match="refused"):
        psycopg.connect(**{**server.parameters(), "port": first.port})


def test_a_process_whose_answer_was_given_up_is_used_no_more(server: EmbeddedServer) -> None:
    def give_up(number: int, frame: object) -> None:
        raise TimeoutError

    with FaultProxy(server.host, server.port, listen=free_port()) as proxy:
        before = signal.signal(signal.SIGUSR1, give_up)
        try:
            with stopped([proxy.process.pid]):
                threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGUSR1]).start()
                with pytest.raises(TimeoutError):
                    proxy.established()
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert not proxy.process.usable
