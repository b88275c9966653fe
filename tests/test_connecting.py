from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from django_pooled.backoff import Backoff
from django_pooled.connecting import Connector
from tests.servers import wait_until

QUICK = Backoff(initial=0.001, maximum=0.002)


class FakeServer:
    """Stands in for a server that can be away; counts who knocks, and how many at once."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.knocks = 0
        self.at_once = self.most_at_once = 0
        self.hold = threading.Event()
        self.hold.set()
        self._lock = threading.Lock()

    def connect(self) -> str:
        with self._lock:
            self.knocks += 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            assert self.hold.wait(10)
            if self.error is not None:
                raise self.error
            return "connection"
        finally:
            with self._lock:
                self.at_once -= 1


def connector(
    *,
    patience: float = 60.0,
    backoff: Backoff = QUICK,
    took: list[float] | None = None,
) -> Connector:
    opened = [] if took is None else took
    return Connector("default", backoff, patience, opened.append)


def somebody() -> bool:
    return True


def nobody() -> bool:
    return False


refused = psycopg.OperationalError("connection failed: Connection refused")
wrong_password = psycopg.OperationalError('FATAL:  password authentication failed for user "ada"')


def test_connections_are_opened_side_by_side_while_the_server_answers() -> None:
    server, opening = FakeServer(), connector()
    server.hold.clear()
    with ThreadPoolExecutor(5) as threads:
        connections = [threads.submit(opening.open, server.connect, somebody) for _ in range(5)]
        wait_until(lambda: server.at_once == 5)
        server.hold.set()
        assert [future.result(10) for future in connections] == ["connection"] * 5


def test_only_one_probe_is_under_way_while_the_server_is_away() -> None:
    server, opening = FakeServer(), connector()
    server.error = refused
    with ThreadPoolExecutor(5) as threads:
        connections = [threads.submit(opening.open, server.connect, somebody) for _ in range(5)]
        wait_until(lambda: server.knocks > 30)
        server.most_at_once = 0
        wait_until(lambda: server.knocks > 80)
        assert server.most_at_once == 1
        server.error = None
        assert [future.result(10) for future in connections] == ["connection"] * 5


def test_a_permanent_refusal_is_raised_at_once() -> None:
    server, opening = FakeServer(), connector()
    server.error = wrong_password
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        opening.open(server.connect, somebody)
    assert server.knocks == 1
    assert opening.trouble is wrong_password


def test_after_a_refusal_the_next_success_ends_the_trouble() -> None:
    server, opening = FakeServer(), connector()
    server.error = wrong_password
    with pytest.raises(psycopg.OperationalError):
        opening.open(server.connect, somebody)
    server.error = None
    assert opening.open(server.connect, somebody) == "connection"
    assert opening.trouble is None
    assert opening.last_error is wrong_password


def test_a_probe_that_nobody_waits_for_ends_after_its_patience() -> None:
    server, opening = FakeServer(), connector(patience=0.05)
    server.error = refused
    with pytest.raises(psycopg.OperationalError, match="Connection refused"):
        opening.open(server.connect, nobody)
    assert server.knocks > 2


def test_a_probe_that_somebody_waits_for_goes_on() -> None:
    server, opening = FakeServer(), connector(patience=0.001)
    server.error = refused
    with ThreadPoolExecutor(1) as threads:
        connection = threads.submit(opening.open, server.connect, somebody)
        wait_until(lambda: server.knocks > 50)
        server.error = None
        assert connection.result(10) == "connection"


def test_closing_ends_a_probe_amid_its_wait_and_all_that_queue_behind_it() -> None:
    server = FakeServer()
    opening = connector(backoff=Backoff(600.0, 600.0, jitter=False))
    server.error = refused
    with ThreadPoolExecutor(3) as threads:
        connections = [threads.submit(opening.open, server.connect, somebody) for _ in range(3)]
        try:
            wait_until(lambda: server.knocks >= 2)
        finally:
            opening.close()
        for future in connections:
            with pytest.raises(psycopg.OperationalError):
                future.result(10)


def test_a_permanent_refusal_stands_for_as_long_as_its_backoff() -> None:
    server = FakeServer()
    opening = connector(backoff=Backoff(600.0, 600.0, jitter=False))
    assert opening.standing_refusal() is None
    server.error = wrong_password
    with pytest.raises(psycopg.OperationalError):
        opening.open(server.connect, somebody)
    assert opening.standing_refusal() is wrong_password
    server.error = None
    opening.open(server.connect, somebody)
    assert opening.standing_refusal() is None


def test_after_a_lost_connection_one_attempt_goes_ahead_of_the_others() -> None:
    server, opening = FakeServer(), connector()
    server.hold.clear()
    opening.suspect()
    with ThreadPoolExecutor(5) as threads:
        connections = [threads.submit(opening.open, server.connect, somebody) for _ in range(5)]
        wait_until(lambda: server.at_once == 1)
        server.hold.set()
        assert [future.result(10) for future in connections] == ["connection"] * 5
    assert server.knocks == 5


def test_attempts_are_counted_by_outcome() -> None:
    took: list[float] = []
    server, opening = FakeServer(), connector(took=took)
    opening.open(server.connect, somebody)
    server.error = wrong_password
    with pytest.raises(psycopg.OperationalError):
        opening.open(server.connect, somebody)
    assert (len(took), opening.failures) == (1, 1)
    assert 0.0 <= took[0] < 60.0
