"""Behind pgpool-II, which reads statements and sends some of them to a standby."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.core.management import call_command
from django.db import connections, transaction

from django_pooled import AmbiguousCommit, Backoff, retry_transaction
from django_pooled.retry.server_identity import questions_for
from tests.servers.pgpool import PROGRAM, Pgpool
from tests.servers.postgresql import backend_count, kill_backends
from tests.support.ledger import THREADS, Ledger
from tests.support.pools import query
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy, StatementFaultKind
    from tests.servers.postgresql import Servers
    from tests.support.pools import MakeDatabase, MakePool

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="pgpool-II is not installed")

QUICK = Backoff(initial=0.001, maximum=0.002)


@pytest.fixture(scope="module")
def pair(servers: Servers) -> Iterator[tuple[EmbeddedServer, EmbeddedServer]]:
    """A primary and its standby."""
    primary = servers.make(settings={"password_encryption": "md5"})
    primary.start()
    ask(primary, "CREATE TABLE pooled (who text)")
    standby = servers.make(primary=primary)
    standby.start()
    yield primary, standby
    servers.remove(standby)
    servers.remove(primary)


@pytest.fixture(scope="module", params=[(0, 1), (1, 0)], ids=["standby reads", "primary reads"])
def pgpool(
    request: pytest.FixtureRequest, pair: tuple[EmbeddedServer, EmbeddedServer]
) -> Iterator[Pgpool]:
    with Pgpool(*pair, weights=request.param) as made:
        yield made


@pytest.fixture
def alias(
    pair: tuple[EmbeddedServer, EmbeddedServer],
    pgpool: Pgpool,
    proxy: FaultProxy,
    make_database: MakeDatabase,
) -> str:
    """A database behind the proxy and pgpool-II, without rows."""
    ask(pair[0], "TRUNCATE pooled")
    proxy.retarget(pgpool.host, pgpool.port)
    made = make_database(pair[0], through=proxy, max_size=2, timeout=10.0)
    call_command("migrate", "django_pooled_tokens", database=made, verbosity=0)
    wait_until(lambda: ask(pair[1], "SELECT to_regclass('django_pooled_token')") is not None)
    return made


def ask(server: EmbeddedServer, statement: str) -> Any:
    with psycopg.connect(**server.parameters("postgres"), autocommit=True) as connection:
        cursor = connection.execute(statement)
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def has(server: EmbeddedServer, rows: int) -> bool:
    return bool(ask(server, "SELECT count(*) FROM pooled") == rows)


def count(alias: str) -> int:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pooled")
        return int(cursor.fetchone()[0])


def insert(alias: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute("INSERT INTO pooled VALUES ('row')")


def test_statements_are_known_to_be_read_on_the_way(alias: str) -> None:
    retry_transaction(using=alias)(lambda: None)()
    assert not questions_for(connections[alias].connection).takes_messages


def test_what_a_decorated_call_reads_stays_fresh(
    alias: str, pair: tuple[EmbeddedServer, EmbeddedServer]
) -> None:
    primary, standby = pair
    read = retry_transaction(using=alias)(count)
    for expected in range(3):
        assert read(alias) == expected
        # Else it would read the same for ever.
        for server in pair:
            assert backend_count(server, "postgres", state="idle in transaction") == 0
        ask(primary, "INSERT INTO pooled VALUES ('another')")
        wait_until(partial(has, standby, expected + 1))


@pytest.mark.parametrize("mode", ["xid", "token", "idempotent", "raise"])
@pytest.mark.parametrize("hidden", [False, True], ids=["INSERT", "a function"])
def test_what_a_decorated_call_writes_is_there_once_and_told_truly(
    alias: str, pair: tuple[EmbeddedServer, EmbeddedServer], mode: str, hidden: bool
) -> None:
    ask(
        pair[0],
        "CREATE OR REPLACE FUNCTION hide() RETURNS void LANGUAGE sql AS "
        "$$ INSERT INTO pooled VALUES ('hidden') $$",
    )

    def body() -> None:
        if not hidden:
            insert(alias)
            return
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT hide()")

    retry_transaction(using=alias, commit_check=mode, backoff=QUICK)(body)()
    assert ask(pair[0], "SELECT count(*) FROM pooled") == 1


@pytest.mark.parametrize("kind", ["refused", "answer_lost"])
@pytest.mark.parametrize("mode", ["xid", "token", "raise"])
def test_a_lost_commit_is_told_truly(
    alias: str,
    pair: tuple[EmbeddedServer, EmbeddedServer],
    proxy: FaultProxy,
    mode: str,
    kind: StatementFaultKind,
) -> None:
    called_back: list[int] = []

    def body() -> None:
        transaction.on_commit(lambda: called_back.append(1), using=alias)
        insert(alias)

    decorated = retry_transaction(using=alias, commit_check=mode, backoff=QUICK)(body)
    decorated()
    proxy.fault_at_commit(kind)
    try:
        decorated()
    except AmbiguousCommit:
        assert mode == "raise"
        assert len(called_back) == 1
        assert ask(pair[0], "SELECT count(*) FROM pooled") in (1, 2)
    else:
        assert mode != "raise"
        assert len(called_back) == 2
        assert ask(pair[0], "SELECT count(*) FROM pooled") == 2


def test_a_token_goes_along_with_what_a_function_wrote(
    alias: str, pair: tuple[EmbeddedServer, EmbeddedServer]
) -> None:
    before = ask(pair[0], "SELECT count(*) FROM django_pooled_token")
    retry_transaction(using=alias, commit_check="token")(insert)(alias)
    retry_transaction(using=alias, commit_check="token")(count)(alias)
    assert ask(pair[0], "SELECT count(*) FROM django_pooled_token") == before + 1


# Ends of sessions, of the server and of pgpool-II's own clients.


def end_sessions(primary: EmbeddedServer) -> None:
    assert kill_backends(primary, "postgres")


def restart_the_primary(primary: EmbeddedServer) -> None:
    primary.stop("fast")
    primary.start()


@pytest.mark.parametrize("our_mode", ["session", "transaction"])
@pytest.mark.parametrize(
    "event", [end_sessions, restart_the_primary], ids=lambda event: event.__name__
)
def test_whatever_ends_under_load_each_call_is_acknowledged_and_is_one_row(
    pair: tuple[EmbeddedServer, EmbeddedServer],
    make_database: MakeDatabase,
    our_mode: str,
    event: Callable[[EmbeddedServer], None],
) -> None:
    primary, standby = pair
    with Pgpool(primary, standby, num_init_children=2 * THREADS) as pgpool:
        alias = make_database(primary, pool_mode=our_mode, max_size=THREADS, timeout=30.0)
        connections.settings[alias].update(HOST=pgpool.host, PORT=pgpool.port)
        ledger = Ledger(alias, primary)
        # What a transaction reads before it writes is the standby's, of another ledger at first.
        wait_until(lambda: ask(standby, "SELECT count(*) FROM ledger") == 0)
        with ledger.load():
            event(primary)
        assert ledger.failures == []
        assert ledger.rows == sorted(ledger.acknowledged)


def test_clients_that_it_ends_for_being_idle_fail_no_checkout(
    pair: tuple[EmbeddedServer, EmbeddedServer], make_pool: MakePool
) -> None:
    primary, standby = pair
    with Pgpool(primary, standby, client_idle_limit=1) as pgpool:
        leading = {"host": pgpool.host, "port": pgpool.port}
        pool = make_pool(primary, parameters=leading, max_size=2)
        held = [pool.checkout(), pool.checkout()]
        sessions = [connection.session for connection in held]
        for connection in held:
            pool.checkin(connection)
        wait_until(lambda: all(session.is_readable() for session in sessions))
        assert query(pool) == 42
        assert pool.snapshot().counters.closed["dead"] == 2


@pytest.mark.parametrize("reserved", [0, 1], ids=["it keeps silent", "it refuses"])
def test_a_pool_that_cannot_grow_in_a_full_pgpool_serves_waiters_from_what_it_has(
    pair: tuple[EmbeddedServer, EmbeddedServer], make_pool: MakePool, reserved: int
) -> None:
    primary, standby = pair
    with Pgpool(primary, standby, num_init_children=2, reserved_connections=reserved) as pgpool:
        leading = {"host": pgpool.host, "port": pgpool.port, "connect_timeout": 2}
        pool = make_pool(primary, parameters=leading, max_size=4, timeout=30.0)
        held = [pool.checkout() for _ in range(2 - reserved)]
        with ThreadPoolExecutor(2) as threads:
            answers = [threads.submit(query, pool) for _ in range(2)]
            wait_until(lambda: pool.gauges().waiting == 2)
            wait_until(lambda: pool.snapshot().counters.connect_failures >= 1)
            for connection in held:
                pool.checkin(connection)
            assert [answer.result(20.0) for answer in answers] == [42, 42]
