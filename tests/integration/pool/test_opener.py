from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured

from django_pooled.errors import CheckoutTimeout, ConnectFailed
from django_pooled.pool.connect_errors import AttemptFailed
from django_pooled.pool.time_limit import LeftBehind, in_a_thread, over_within, start
from django_pooled.signals import connection_discarded, connection_opened
from tests.servers.postgresql import backend_count
from tests.support.pools import fill, query
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django.dispatch import Signal

    from django_pooled.pool.connection import PooledConnection
    from django_pooled.pool.pool import Pool
    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy
    from tests.support.pools import MakePool

SHORT = 2  # psycopg takes no shorter connect_timeout


class Credentials:
    """A password that is fetched; the first calls hang until they are released."""

    def __init__(self, password: str, hang: int) -> None:
        self.calls = 0
        self.released = threading.Event()
        self._password = password
        self._hang = hang
        self._lock = threading.Lock()

    def __call__(self) -> str:
        with self._lock:
            self.calls += 1
            hangs = self.calls <= self._hang
        if hangs:
            assert self.released.wait(60)
        return self._password


class MakeHangingPool(Protocol):
    def __call__(self, hanging: int, **options: Any) -> tuple[Pool, Credentials]: ...


@pytest.fixture
def make_hanging_pool(server: EmbeddedServer, make_pool: MakePool) -> Iterator[MakeHangingPool]:
    """Makes an empty pool, and its credentials, which hang in the first connects."""
    made: list[Credentials] = []

    def make(hanging: int, **options: Any) -> tuple[Pool, Credentials]:
        made.append(password := Credentials(server.password, hanging))
        parameters = {"password": password, "connect_timeout": SHORT}
        return make_pool(server, min_size=0, parameters=parameters, **options), password

    yield make
    for credentials in made:
        credentials.released.set()


@pytest.mark.parametrize("max_size", [1, 3])
def test_credentials_that_hang_are_overtaken(
    make_hanging_pool: MakeHangingPool, max_size: int
) -> None:
    pool, password = make_hanging_pool(1, max_size=max_size, timeout=30.0)
    assert query(pool) == 42
    assert password.calls == 2
    assert pool.snapshot().counters.connect_failures == 1
    assert "given up after 2 s of waiting for the credentials" in str(pool._connector.last_error)


def test_the_timeout_says_what_was_waited_for(make_hanging_pool: MakeHangingPool) -> None:
    pool, _ = make_hanging_pool(2, timeout=SHORT + 1.0)
    with pytest.raises(CheckoutTimeout, match="waiting for the credentials") as timeout:
        query(pool)
    assert isinstance(timeout.value.__cause__, psycopg.errors.ConnectionTimeout)


def test_a_connection_that_comes_late_is_used_where_there_is_room(
    make_hanging_pool: MakeHangingPool,
) -> None:
    # The first two attempts hang, and the waits for a third are long: the first is released.
    backoff = {"initial": 600.0, "maximum": 600.0, "jitter": False}
    pool, password = make_hanging_pool(2, max_size=2, timeout=60.0, backoff=backoff)
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(query, pool)
        wait_until(lambda: pool.snapshot().counters.connect_failures == 2)
        password.released.set()
        assert answer.result(20) == 42
    wait_until(lambda: pool.gauges().idle == 2)
    snapshot = pool.snapshot()
    assert (snapshot.counters.connects, snapshot.size) == (2, 2)
    assert pool._connector.trouble is None


def test_a_connection_that_comes_late_is_closed_where_there_is_no_room(
    server: EmbeddedServer, make_hanging_pool: MakeHangingPool
) -> None:
    pool, password = make_hanging_pool(1, max_size=1, timeout=30.0)
    assert query(pool) == 42
    password.released.set()
    wait_until(lambda: sum(pool.snapshot().counters.closed.values()) == 1)
    assert pool.gauges().size == 1
    wait_until(lambda: backend_count(server, "postgres") == 1)
    assert query(pool) == 42
    fill(pool, 1)


def test_a_connection_that_comes_after_the_pool_was_closed_is_closed(
    server: EmbeddedServer, make_hanging_pool: MakeHangingPool
) -> None:
    pool, password = make_hanging_pool(1, max_size=1)
    assert query(pool) == 42
    pool.close()
    password.released.set()
    wait_until(lambda: backend_count(server, "postgres") == 0)


def test_a_configuration_whose_answer_is_lost_is_given_up_and_leaves_nothing(
    server: EmbeddedServer, proxy: FaultProxy, make_pool: MakePool
) -> None:
    def configure(connection: PooledConnection) -> None:
        connection.execute("SET application_name TO 'configured'")

    proxy.fault_at("SET application_name", "swallowed", silence=60.0)
    pool = make_pool(
        server,
        through=proxy,
        min_size=0,
        timeout=30.0,
        configure=configure,
        parameters={"connect_timeout": SHORT},
    )
    assert query(pool) == 42
    assert pool.snapshot().counters.connect_failures == 1
    wait_until(lambda: not threads_named("default-connects"))


def test_a_configuration_behind_a_lock_leaves_no_session_that_waits_for_it(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    with psycopg.connect(**server.parameters("postgres")) as admin:
        admin.execute("CREATE TABLE tenants (name text)")
        admin.commit()
        try:
            admin.execute("LOCK tenants IN ACCESS EXCLUSIVE MODE")
            pool = make_pool(
                server,
                min_size=0,
                timeout=60.0,
                configure=lambda connection: connection.execute("TABLE tenants"),
                parameters={"connect_timeout": SHORT},
            )
            with ThreadPoolExecutor(1) as thread:
                answer = thread.submit(query, pool)
                wait_until(lambda: pool.snapshot().counters.connect_failures == 2)
                # Besides this one: the attempt under way, and one that has not quite ended.
                assert backend_count(server, "postgres") <= 3
                admin.rollback()
                assert answer.result(20) == 42
        finally:
            admin.rollback()
            admin.execute("DROP TABLE tenants")
    wait_until(lambda: backend_count(server, "postgres") == pool.gauges().size)


def test_a_receiver_that_hangs_costs_one_attempt(
    server: EmbeddedServer, make_pool: MakePool, receive: Callable[..., None]
) -> None:
    released, calls = threading.Event(), []

    def hang(**_: object) -> None:
        calls.append(1)
        if len(calls) == 1:
            assert released.wait(60)

    receive(connection_opened, hang)
    pool = make_pool(server, min_size=0, timeout=30.0, parameters={"connect_timeout": SHORT})
    try:
        assert query(pool) == 42
    finally:
        released.set()
    wait_until(lambda: backend_count(server, "postgres") == 1)
    assert pool.gauges().size == 1


@pytest.fixture
def receive() -> Iterator[Callable[[Signal, Any], None]]:
    connected: list[tuple[Signal, Any]] = []

    def connect(signal: Signal, receiver: Any) -> None:
        signal.connect(receiver, weak=False)
        connected.append((signal, receiver))

    yield connect
    for signal, receiver in connected:
        signal.disconnect(receiver)


class Once:
    """Raises at its first call."""

    def __init__(self, error: BaseException) -> None:
        self.calls = 0
        self._error = error

    def __call__(self, *_: object, **__: object) -> str:
        self.calls += 1
        if self.calls == 1:
            raise self._error
        return ""


NO_EXCEPTIONS = [asyncio.CancelledError(), SystemExit(3), KeyboardInterrupt(), GeneratorExit()]


@pytest.mark.parametrize("error", NO_EXCEPTIONS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("where", ["credentials", "configuration", "receiver"])
def test_what_is_no_exception_counts_as_one_failed_attempt(
    server: EmbeddedServer,
    make_pool: MakePool,
    receive: Callable[..., None],
    where: str,
    error: BaseException,
) -> None:
    once = Once(error)
    options: dict[str, Any] = {}
    if where == "credentials":
        options["parameters"] = {"password": lambda: once() or server.password}
    elif where == "configuration":
        options["configure"] = once
    else:
        receive(connection_opened, once)
    pool = make_pool(server, min_size=0, max_size=1, **options)
    connection = pool.checkout()
    # Before its checkin, which may configure it again.
    assert once.calls == 2
    pool.checkin(connection)
    snapshot = pool.snapshot()
    assert (snapshot.counters.connect_failures, snapshot.connecting) == (1, 0)
    assert type(error).__name__ in (snapshot.last_error or "")
    wait_until(lambda: backend_count(server, "postgres") == 1)


def test_what_is_no_exception_is_named_by_the_timeout_if_it_stays(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    def configure(connection: PooledConnection) -> None:
        raise SystemExit("not today")

    pool = make_pool(server, min_size=0, max_size=2, timeout=1.0, configure=configure)
    with pytest.raises(CheckoutTimeout, match="configuration raised SystemExit: not tod") as error:
        query(pool)
    assert isinstance(error.value.__cause__, SystemExit)
    assert pool.snapshot().counters.connect_failures < 15


def test_a_receiver_that_ends_the_closing_of_a_connection_costs_no_place(
    server: EmbeddedServer, make_pool: MakePool, receive: Callable[..., None]
) -> None:
    receive(connection_discarded, Once(SystemExit()))
    pool = make_pool(server, max_size=1)
    connection = pool.checkout()
    connection.session.doom("for the test")
    with pytest.raises(SystemExit):
        pool.checkin(connection)
    assert query(pool) == 42


def test_a_configuration_that_leaves_a_transaction_open_is_told(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, configure=lambda connection: connection.execute("BEGIN"))
    with pytest.raises(ConnectFailed, match="left it in status INTRANS; expected IDLE"):
        query(pool)


class TokenServiceAway(Exception):
    """As botocore's or google-auth's, which are no OSErrors."""


@pytest.mark.parametrize(
    "error", [TokenServiceAway("503"), ValueError("no JSON"), KeyError("token"), OSError("down")]
)
def test_credentials_that_cannot_be_fetched_are_waited_for(
    server: EmbeddedServer, make_pool: MakePool, error: Exception
) -> None:
    once = Once(error)
    pool = make_pool(server, min_size=0, parameters={"password": lambda: once() or server.password})
    assert query(pool) == 42


def test_credentials_that_cannot_be_fetched_in_time_are_the_cause(
    server: EmbeddedServer, make_pool: MakePool
) -> None:
    def password() -> str:
        raise TokenServiceAway("503 from the metadata server")

    pool = make_pool(server, min_size=0, timeout=0.5, parameters={"password": password})
    words = "fetching the credentials raised TokenServiceAway: 503 from the metadata server"
    with pytest.raises(CheckoutTimeout, match=words) as timeout:
        query(pool)
    assert isinstance(timeout.value.__cause__, TokenServiceAway)


@pytest.mark.parametrize("error", [ImproperlyConfigured("no region"), TypeError("not callable")])
def test_credentials_that_waiting_will_not_bring_fail_at_once(
    server: EmbeddedServer, make_pool: MakePool, error: Exception
) -> None:
    def password() -> str:
        raise error

    pool = make_pool(server, min_size=0, timeout=60.0, parameters={"password": password})
    with pytest.raises(ConnectFailed, match=f"{type(error).__name__}: {error}") as refused:
        query(pool)
    assert refused.value.__cause__ is error


# Threads that are left behind.


def test_work_in_the_background_keeps_what_it_raises_for_its_caller() -> None:
    def work() -> None:
        raise SystemExit(4)

    future: Future[None] = start(work, in_a_thread("test"))
    assert over_within(future, 10.0)
    assert isinstance(future.exception(), SystemExit)


def test_a_timeout_of_the_work_is_not_taken_for_one_of_the_wait() -> None:
    def work() -> None:
        raise TimeoutError

    assert over_within(start(work, in_a_thread("test")), 10.0)


def test_work_that_is_not_over_in_time_goes_on() -> None:
    released = threading.Event()
    future = start(lambda: released.wait(60), in_a_thread("test"))
    assert not over_within(future, 0.0)
    released.set()
    assert future.result(10) is True


def test_waits_grow_with_the_threads_that_never_end_and_shrink_with_their_end() -> None:
    left_behind = LeftBehind(2, 300.0)
    hanging: list[Future[None]] = [Future() for _ in range(6)]
    assert [left_behind.add(future, 4.0) for future in hanging[:2]] == [0.0, 0.0]
    bounds = [4.0, 8.0, 16.0, 32.0]
    for future, bound in zip(hanging[2:], bounds, strict=True):
        assert 0.0 <= left_behind.add(future, 4.0) <= bound
    for future in hanging:
        future.set_result(None)
    assert left_behind.add(Future(), 4.0) == 0.0


def test_the_cause_is_kept_by_a_failure_that_has_words_of_its_own() -> None:
    error = ValueError("odd")
    assert str(AttemptFailed("the check", error)) == "the check raised ValueError: odd"
    assert AttemptFailed("the check", error).__cause__ is error
    assert str(AttemptFailed("the check", KeyboardInterrupt())) == (
        "the check raised KeyboardInterrupt"
    )


def threads_named(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]
