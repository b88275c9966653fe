from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from itertools import pairwise
from typing import Any

import psycopg
import pytest

from django_pooled.pool.backoff import Backoff
from django_pooled.pool.connect_errors import AttemptFailed, AttemptHung
from django_pooled.pool.connector import LONGEST_WHEN_FULL, LONGEST_WHEN_REFUSED, Connector, Waits
from tests.support.waiting import wait_until

QUICK = Backoff(initial=0.001, maximum=0.002)


class FakeServer:
    """Stands in for a server that can be away; counts who knocks, and how many at once."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.knocks = 0
        self.knocked_at: list[float] = []
        self.at_once = self.most_at_once = 0
        self.hold = threading.Event()
        self.hold.set()
        self._lock = threading.Lock()

    def connect(self) -> str:
        with self._lock:
            self.knocks += 1
            self.knocked_at.append(time.monotonic())
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
    credentials_change: bool = False,
) -> Connector:
    opened = [] if took is None else took
    return Connector("default", backoff, patience, opened.append, credentials_change)


def somebody() -> bool:
    return True


def nobody() -> bool:
    return False


refused = psycopg.OperationalError("connection failed: Connection refused")
full = psycopg.OperationalError("connection failed: FATAL:  sorry, too many clients already")
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


def five_at_once(server: FakeServer, opening: Connector) -> list[Future[Any]]:
    """Let five threads connect after a loss, the first of which has no answer for a while."""
    server.hold.clear()
    opening.suspect()
    with ThreadPoolExecutor(5) as threads:
        connections = [threads.submit(opening.open, server.connect, somebody) for _ in range(5)]
        wait_until(lambda: server.at_once == 1)
        server.hold.set()
        wait(connections, 10)
    return connections


def test_those_that_wait_for_their_turn_hear_of_a_refusal_without_an_attempt_of_their_own() -> None:
    server, opening = FakeServer(), connector()
    server.error = wrong_password
    for future in five_at_once(server, opening):
        with pytest.raises(psycopg.OperationalError, match="password"):
            future.result()
    assert server.knocks == 1


def test_pauses_after_refusals_grow_beyond_the_backoff_s_cap_and_end_with_a_success() -> None:
    server = FakeServer()
    opening = connector(backoff=Backoff(initial=0.5, maximum=0.75, jitter=False))
    server.error = wrong_password
    pauses = []
    for _ in range(5):
        with pytest.raises(psycopg.OperationalError):
            opening.open(server.connect, somebody)
        pauses.append(opening.pause)
    for pause, bound in zip(pauses, [0.5, 1.0, *[LONGEST_WHEN_REFUSED] * 3], strict=True):
        assert bound - 0.4 < pause <= bound
    server.error = None
    opening.open(server.connect, somebody)
    assert (opening.pause, opening.standing_refusal()) == (0.0, None)


def test_a_failure_that_waiting_may_end_makes_no_pause() -> None:
    server, opening = FakeServer(), connector(patience=0.0, backoff=Backoff(9.0, 9.0, jitter=False))
    server.error = refused
    with pytest.raises(psycopg.OperationalError):
        opening.open(server.connect, nobody)
    assert (opening.pause, opening.standing_refusal()) == (0.0, None)


def test_credentials_that_change_are_tried_twice_at_the_first_refusal_alone() -> None:
    server, opening = FakeServer(), connector(credentials_change=True)
    server.error = wrong_password
    for knocks in (2, 3, 4):
        with pytest.raises(psycopg.OperationalError):
            opening.open(server.connect, somebody)
        assert server.knocks == knocks
    server.error = None
    opening.open(server.connect, somebody)
    server.error = wrong_password
    with pytest.raises(psycopg.OperationalError):
        opening.open(server.connect, somebody)
    assert server.knocks == 7


def test_connections_that_are_of_no_use_make_a_pause_until_one_is() -> None:
    opening, failure = connector(backoff=Backoff(9.0, 9.0, jitter=False)), ValueError("standby")
    opening.hold_off(failure, 1)
    assert 8.0 < opening.pause <= 9.0
    assert opening.trouble is failure
    assert opening.standing_refusal() is None
    opening.go_on()
    assert opening.pause == 0.0
    assert opening.trouble is None


def test_a_probe_ends_when_late_connections_have_taken_all_places() -> None:
    server, opening, room = FakeServer(), connector(), threading.Event()
    server.error = refused
    room.set()
    with ThreadPoolExecutor(3) as threads:
        connections = [
            threads.submit(opening.open, server.connect, somebody, room.is_set) for _ in range(3)
        ]
        wait_until(lambda: server.knocks > 30)
        room.clear()
        for future in connections:
            with pytest.raises(psycopg.OperationalError):
                future.result(10)


def test_a_connection_that_comes_late_ends_the_trouble() -> None:
    took: list[float] = []
    server, opening = FakeServer(), connector(patience=0.0, took=took)
    server.error = refused
    with pytest.raises(psycopg.OperationalError):
        opening.open(server.connect, nobody)
    opening.arrived(3.5)
    assert (opening.trouble, took) == (None, [3.5])


def test_after_a_lost_connection_one_attempt_goes_ahead_of_the_others() -> None:
    server, opening = FakeServer(), connector()
    assert [each.result() for each in five_at_once(server, opening)] == ["connection"] * 5
    assert server.knocks == 5


def test_a_server_is_in_doubt_after_a_loss_or_a_failure_until_it_has_answered() -> None:
    server, opening = FakeServer(), connector(patience=0.0)

    def doubted_since(error: Exception | None = None) -> float | None:
        server.error = error
        with suppress(psycopg.OperationalError):
            opening.open(server.connect, nobody)
        return opening.in_doubt_since

    assert doubted_since() is None
    opening.suspect()
    assert opening.in_doubt_since is not None
    assert doubted_since() is None
    failed_at = doubted_since(refused)
    assert failed_at is not None
    assert doubted_since(refused) == failed_at
    # It answers, though not as one would like.
    assert doubted_since(full) is None
    assert doubted_since(refused) != failed_at
    assert doubted_since(wrong_password) is None
    opening.suspect()
    assert doubted_since(full) is None


def test_attempts_are_counted_by_outcome() -> None:
    took: list[float] = []
    server, opening = FakeServer(), connector(took=took)
    opening.open(server.connect, somebody)
    server.error = wrong_password
    with pytest.raises(psycopg.OperationalError):
        opening.open(server.connect, somebody)
    assert (len(took), opening.failures) == (1, 1)
    assert 0.0 <= took[0] < 60.0


def test_while_the_server_is_full_waits_grow_beyond_the_backoff_s_cap() -> None:
    waits = Waits(Backoff(initial=0.1, maximum=0.75, jitter=False))
    assert [waits.after(attempt, full) for attempt in range(1, 10)] == pytest.approx(
        [0.1, 0.2, 0.4, 0.8, 1.6, *[LONGEST_WHEN_FULL] * 4]
    )


def test_waits_after_other_failures_are_those_of_the_backoff() -> None:
    backoff = Backoff(initial=0.1, maximum=0.75, jitter=False)
    waits = Waits(backoff)
    for attempt in range(1, 10):
        assert waits.after(attempt, refused) == backoff.wait(attempt)
    for attempt in range(10, 20):
        waits.after(attempt, full)
    assert waits.after(20, refused) == backoff.wait(20) == 0.75


def test_a_server_that_is_full_after_an_outage_is_asked_again_as_soon_as_one_at_first() -> None:
    waits = Waits(Backoff(initial=0.1, maximum=0.75, jitter=False))
    for attempt in range(1, 10):
        waits.after(attempt, refused)
    assert [waits.after(attempt, full) for attempt in (10, 11, 12)] == [0.1, 0.2, 0.4]


def test_what_the_project_brings_and_fails_is_waited_out_like_a_full_server() -> None:
    waits = Waits(Backoff(initial=0.1, maximum=0.75, jitter=False))
    failure = AttemptFailed("the credentials", ValueError())
    assert [waits.after(attempt, failure) for attempt in range(1, 7)] == pytest.approx(
        [0.1, 0.2, 0.4, 0.8, 1.6, LONGEST_WHEN_FULL]
    )


def test_an_attempt_that_hung_says_how_long_to_wait() -> None:
    waits = Waits(Backoff(initial=0.1, maximum=0.75, jitter=False))
    assert waits.after(1, AttemptHung("given up")) == 0.1
    assert waits.after(2, AttemptHung("given up", 20.0)) == 20.0


def test_waits_for_a_full_server_are_as_random_as_the_others() -> None:
    drawn = []
    for _ in range(200):
        waits = Waits(Backoff(initial=0.1, maximum=0.75))
        drawn.append([waits.after(attempt, full) for attempt in range(1, 9)][-1])
    assert 0 <= min(drawn) < LONGEST_WHEN_FULL / 4
    assert LONGEST_WHEN_FULL * 3 / 4 < max(drawn) <= LONGEST_WHEN_FULL


def test_a_backoff_s_own_cap_holds_where_it_is_longer() -> None:
    waits = Waits(Backoff(initial=8.0, maximum=20.0, jitter=False))
    assert [waits.after(attempt, full) for attempt in (1, 2, 3)] == [8.0, 16.0, 20.0]


def test_a_probe_knocks_less_and_less_at_a_full_server() -> None:
    server = FakeServer()
    opening = connector(backoff=Backoff(initial=0.01, maximum=0.01, jitter=False))
    server.error = full
    with ThreadPoolExecutor(1) as threads:
        connection = threads.submit(opening.open, server.connect, somebody)
        wait_until(lambda: server.knocks >= 7)
        server.error = None
        assert connection.result(10) == "connection"
    # The first was no probe's.
    waited = [later - at for at, later in pairwise(server.knocked_at[1:])]
    assert len(waited) >= 5
    assert all(wait >= 0.99 * 0.01 * 2**number for number, wait in enumerate(waited))


def test_the_last_error_is_over_once_an_attempt_succeeds_and_not_before() -> None:
    server, opening = FakeServer(), connector(patience=0.0)
    server.error = wrong_password
    with pytest.raises(psycopg.OperationalError):
        opening.open(server.connect, nobody)
    assert (opening.last_error, opening.connected_again_at) == (wrong_password, None)
    server.error = None
    assert opening.open(server.connect, nobody) == "connection"
    assert opening.connected_again_at is not None
    assert opening.connected_again_at >= opening.last_error_at
    server.error = wrong_password
    with pytest.raises(psycopg.OperationalError):
        opening.open(server.connect, nobody)
    assert opening.connected_again_at is None
