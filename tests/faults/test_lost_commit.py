from __future__ import annotations

import os
import signal
import threading
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import (
    IntegrityError,
    InternalError,
    OperationalError,
    ProgrammingError,
    connections,
    transaction,
)
from psycopg import sql

from django_pooled import AmbiguousCommit, Backoff, retry_transaction
from django_pooled.replay import copy_of
from django_pooled.tokens import table
from django_pooled.tokens.models import CommitToken
from tests.servers.pgbouncer import PROGRAM, PgBouncer
from tests.support.proxied import Proxied
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django_pooled.base import DatabaseWrapper
    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy, StatementFaultKind
    from tests.support.pools import MakeDatabase

QUICK = Backoff(initial=0.001, maximum=0.002)


class Bank(Proxied):
    """A row that each call raises by one, behind a proxy that can spoil the COMMIT."""

    def __init__(
        self, alias: str, server: EmbeddedServer, proxy: FaultProxy, database: str = "postgres"
    ) -> None:
        super().__init__(alias, server, proxy, database)
        self.attempts = 0
        self.called_back = 0
        self.ask("CREATE TABLE IF NOT EXISTS account (balance int)")
        self.ask("INSERT INTO account VALUES (0)")

    def deposit(self) -> None:
        self.attempts += 1
        transaction.on_commit(self.call_back, using=self.alias)
        with connections[self.alias].cursor() as cursor:
            cursor.execute("UPDATE account SET balance = balance + 1")

    def call_back(self) -> None:
        # On the connection that the transaction's callbacks find.
        with connections[self.alias].cursor() as cursor:
            cursor.execute("SELECT 1")
        self.called_back += 1

    def read(self) -> None:
        self.attempts += 1
        with connections[self.alias].cursor() as cursor:
            cursor.execute("SELECT balance FROM account")

    def make_token_table(self) -> None:
        call_command("migrate", "django_pooled_tokens", database=self.alias, verbosity=0)

    @property
    def balance(self) -> int:
        balance: int = self.ask("SELECT balance FROM account")[0]
        return balance


@pytest.fixture
def bank(
    shared_server: EmbeddedServer,
    own_database: str,
    make_proxy: Callable[[EmbeddedServer], FaultProxy],
    make_database: MakeDatabase,
) -> Bank:
    proxy = make_proxy(shared_server)
    alias = make_database(
        shared_server, through=proxy, database=own_database, max_size=3, timeout=10.0
    )
    return Bank(alias, shared_server, proxy, own_database)


@pytest.fixture
def lone(
    own_server: EmbeddedServer,
    make_proxy: Callable[[EmbeddedServer], FaultProxy],
    make_database: MakeDatabase,
) -> Bank:
    """A bank whose server is its own, to be killed or followed by another."""
    proxy = make_proxy(own_server)
    alias = make_database(own_server, through=proxy, max_size=3, timeout=10.0)
    return Bank(alias, own_server, proxy)


def test_a_black_hole_in_the_body_leaves_no_locks_to_wait_for(bank: Bank) -> None:
    connections[bank.alias].ensure_connection()
    decorate = retry_transaction(using=bank.alias, backoff=QUICK)
    decorate(bank.deposit)()  # From here on it is known what works for the connection.
    bank.proxy.fault_at(r"UPDATE\b", "swallowed", silence=0.1)
    # Without an end of the first attempt's backend, the second would wait for the row for ever.
    decorate(bank.deposit)()
    assert bank.proxy.triggered() == 1
    assert (bank.attempts, bank.balance, bank.called_back) == (3, 2, 2)


@pytest.mark.parametrize(
    ("kind", "attempts"),
    [("refused", 2), ("answer_lost", 1), ("stranded", 2)],
    ids=["never arrived, run again", "found committed", "left open, ended and run again"],
)
def test_a_commit_without_an_answer_takes_effect_once(
    bank: Bank, kind: StatementFaultKind, attempts: int
) -> None:
    bank.proxy.fault_at_commit(kind)
    retry_transaction(using=bank.alias, backoff=QUICK)(bank.deposit)()
    assert bank.proxy.triggered() == 1
    assert (bank.attempts, bank.balance, bank.called_back) == (attempts, 1, 1)
    assert connections[bank.alias].get_autocommit()


def test_a_connection_lost_while_asking_is_no_reason_to_give_up(bank: Bank) -> None:
    bank.proxy.fault_at(r"COMMIT\b|SELECT pg_catalog\.pg_xact_status", "answer_lost", times=3)
    retry_transaction(using=bank.alias, backoff=QUICK)(bank.deposit)()
    assert bank.proxy.triggered() == 3
    assert (bank.attempts, bank.balance, bank.called_back) == (1, 1, 1)


def test_a_read_whose_commit_was_lost_is_run_again(bank: Bank) -> None:
    bank.proxy.fault_at("SAVEPOINT django_pooled_commit", "answer_lost")
    retry_transaction(using=bank.alias, backoff=QUICK)(bank.read)()
    assert bank.proxy.triggered() == 1
    assert bank.attempts == 2


def test_commit_check_raise_leaves_it_to_the_caller(bank: Bank) -> None:
    bank.proxy.fault_at_commit("answer_lost")
    with pytest.raises(AmbiguousCommit, match="it is unknown whether") as ambiguous:
        retry_transaction(using=bank.alias, commit_check="raise", backoff=QUICK)(bank.deposit)()
    assert isinstance(ambiguous.value, OperationalError)
    assert (bank.attempts, bank.balance, bank.called_back) == (1, 1, 0)


@pytest.fixture
def crash_before_asking(
    lone: Bank, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[], object]], None]:
    """Have the server crash and start again after the fault, before anything can be asked.

    To be called with what is to be done after its start, if anything.
    """
    pool = cast("DatabaseWrapper", connections[lone.alias]).pool
    assert pool is not None
    connections[lone.alias].ensure_connection()
    checkout = pool.checkout
    crashed: list[bool] = []

    def crash_first() -> Any:
        if not crashed:
            crashed.append(True)
            lone.server.kill()
            lone.server.start()
            for work in afterwards:
                work()
        return checkout()

    afterwards: list[Callable[[], object]] = []
    monkeypatch.setattr(pool, "checkout", crash_first)
    return afterwards.append


@pytest.mark.usefixtures("crash_before_asking")
def test_a_server_that_crashed_meanwhile_makes_a_found_commit_doubtful(lone: Bank) -> None:
    # After a crash the same id may belong to somebody else's transaction.
    lone.proxy.fault_at_commit("answer_lost")
    with pytest.raises(AmbiguousCommit):
        retry_transaction(using=lone.alias, backoff=QUICK)(lone.deposit)()
    assert (lone.attempts, lone.balance, lone.called_back) == (1, 1, 0)


@pytest.mark.usefixtures("crash_before_asking")
@pytest.mark.parametrize("mode", ["xid", "token", "idempotent"])
def test_an_id_that_a_crashed_server_does_not_know_was_never_committed(
    lone: Bank, mode: str
) -> None:
    lone.make_token_table()
    lone.proxy.fault_at_commit("refused")
    retry_transaction(using=lone.alias, commit_check=mode, backoff=QUICK)(lone.deposit)()
    assert (lone.attempts, lone.balance, lone.called_back) == (2, 1, 1)


@pytest.mark.usefixtures("crash_before_asking")
def test_a_token_outlives_the_crash_of_the_server(lone: Bank) -> None:
    lone.make_token_table()
    lone.proxy.fault_at_commit("answer_lost")
    retry_transaction(using=lone.alias, commit_check="token", backoff=QUICK)(lone.deposit)()
    assert (lone.attempts, lone.balance, lone.called_back) == (1, 1, 1)


@pytest.mark.usefixtures("crash_before_asking")
def test_what_is_idempotent_is_run_again_where_it_cannot_be_told(
    lone: Bank, caplog: pytest.LogCaptureFixture
) -> None:
    lone.proxy.fault_at_commit("answer_lost")
    retry_transaction(using=lone.alias, commit_check="idempotent", backoff=QUICK)(lone.deposit)()
    assert (lone.attempts, lone.balance, lone.called_back) == (2, 2, 1)
    # Taken for failed is not found to have failed.
    assert lone.lost_commits == {"unknown": 1}
    assert "the answer to COMMIT was lost; the transaction is unknown" in caplog.text


@pytest.mark.usefixtures("crash_before_asking")
def test_what_may_have_been_committed_never_ends_as_a_plain_failure(lone: Bank) -> None:
    def deposit() -> None:
        if lone.attempts:
            raise LookupError("no such account any more")
        lone.deposit()

    lone.proxy.fault_at_commit("answer_lost")
    with pytest.raises(AmbiguousCommit) as raised:
        retry_transaction(using=lone.alias, commit_check="idempotent", backoff=QUICK)(deposit)()
    assert isinstance(raised.value.__cause__, LookupError)
    assert lone.balance == 1
    assert lone.lost_commits == {"unknown": 1}


def test_what_is_idempotent_is_not_run_again_where_it_can_be_told(bank: Bank) -> None:
    bank.proxy.fault_at_commit("answer_lost")
    retry_transaction(using=bank.alias, commit_check="idempotent", backoff=QUICK)(bank.deposit)()
    assert (bank.attempts, bank.balance, bank.called_back) == (1, 1, 1)
    assert bank.lost_commits == {"committed": 1}


def test_each_committed_transaction_leaves_one_token_and_readers_none(bank: Bank) -> None:
    bank.make_token_table()
    decorate = retry_transaction(using=bank.alias, commit_check="token", backoff=QUICK)
    bank.proxy.fault_at_commit("refused")
    decorate(bank.deposit)()
    decorate(bank.deposit)()
    decorate(bank.read)()
    assert bank.ask("SELECT count(*) FROM django_pooled_token") == (2,)


def test_a_token_stays_though_the_savepoint_of_the_first_write_is_rolled_back(bank: Bank) -> None:
    bank.make_token_table()

    @retry_transaction(using=bank.alias, commit_check="token", backoff=QUICK)
    def deposit() -> None:
        for undone in (True, False, True):
            with transaction.atomic(using=bank.alias):
                bank.deposit()
                transaction.set_rollback(undone, using=bank.alias)

    deposit()
    assert bank.balance == 1
    assert bank.ask("SELECT count(*) FROM django_pooled_token") == (1,)


UNDOINGS: dict[str, Callable[[Any], object]] = {
    "a comment before it": lambda cursor: cursor.execute("/* why */ ROLLBACK TO SAVEPOINT undone"),
    "abbreviated": lambda cursor: cursor.execute("rollback  to undone"),
    "several statements": lambda cursor: cursor.execute("SELECT 1; ROLLBACK TO undone"),
    "bytes": lambda cursor: cursor.execute(b"ROLLBACK TO undone"),
    "composed": lambda cursor: cursor.execute(
        sql.SQL("ROLLBACK TO {}").format(sql.Identifier("undone"))
    ),
    "psycopg's own cursor": lambda cursor: psycopg.Cursor(cursor.connection).execute(
        "ROLLBACK TO undone"
    ),
    "psycopg's connection": lambda cursor: cursor.connection.execute("ROLLBACK TO undone"),
    "and all settings": lambda cursor: cursor.execute("ROLLBACK TO undone; RESET ALL"),
}


@pytest.mark.parametrize("undoing", UNDOINGS)
def test_a_token_stays_however_the_savepoint_of_the_first_write_is_undone(
    bank: Bank, undoing: str
) -> None:
    bank.make_token_table()

    @retry_transaction(using=bank.alias, commit_check="token", backoff=QUICK)
    def deposit() -> None:
        with connections[bank.alias].cursor() as cursor:
            cursor.execute("SAVEPOINT undone")
            bank.deposit()
            UNDOINGS[undoing](cursor)
        bank.deposit()

    deposit()
    assert bank.balance == 1
    assert bank.ask("SELECT count(*) FROM django_pooled_token") == (1,)


def test_a_token_stays_though_the_settings_are_reset(bank: Bank) -> None:
    bank.make_token_table()

    @retry_transaction(using=bank.alias, commit_check="token", backoff=QUICK)
    def deposit() -> None:
        bank.deposit()
        with connections[bank.alias].cursor() as cursor:
            cursor.execute("RESET ALL")

    deposit()
    assert bank.balance == 1
    assert bank.ask("SELECT count(*) FROM django_pooled_token") == (1,)


def test_a_token_is_left_by_what_a_function_wrote_too(bank: Bank) -> None:
    bank.make_token_table()
    bank.ask(
        "CREATE FUNCTION deposit() RETURNS void LANGUAGE sql AS "
        "$$ UPDATE account SET balance = balance + 1 $$"
    )

    @retry_transaction(using=bank.alias, commit_check="token", backoff=QUICK)
    def deposit() -> None:
        with connections[bank.alias].cursor() as cursor:
            cursor.execute("SELECT deposit()")

    deposit()
    assert bank.balance == 1
    assert bank.ask("SELECT count(*) FROM django_pooled_token") == (1,)


def test_old_tokens_are_swept(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    bank.make_token_table()
    bank.ask(
        "INSERT INTO django_pooled_token VALUES "
        "(gen_random_uuid(), now() - interval '25 hours'), "
        "(gen_random_uuid(), now() - interval '23 hours')"
    )
    monkeypatch.setattr(table.SWEEP, "swept_at", {})
    for _ in range(2):
        retry_transaction(using=bank.alias, commit_check="token")(bank.deposit)()
    assert bank.ask("SELECT count(*) FROM django_pooled_token") == (3,)


def test_many_old_tokens_are_swept_by_one_call_after_another(
    bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank.make_token_table()
    bank.ask(
        "INSERT INTO django_pooled_token SELECT gen_random_uuid(), now() - interval '2 days' "
        "FROM generate_series(1, 25)"
    )
    monkeypatch.setattr(table.SWEEP, "swept_at", {})
    monkeypatch.setattr(table.SWEEP, "at_once", 10)
    left = []
    for _ in range(4):
        retry_transaction(using=bank.alias, commit_check="token")(bank.deposit)()
        old = "SELECT count(*) FROM django_pooled_token WHERE created_at < now() - interval '1 day'"
        left.append(bank.ask(old)[0])
    # Each made to pay for so many.
    assert left == [15, 5, 0, 0]


def test_the_sweep_finds_old_tokens_by_an_index(bank: Bank) -> None:
    bank.make_token_table()
    bank.ask(
        "INSERT INTO django_pooled_token SELECT gen_random_uuid(), now() FROM "
        "generate_series(1, 20000)"
    )
    bank.ask("ANALYZE django_pooled_token")
    with bank.connect() as connection:
        cursor = psycopg.ClientCursor(connection)
        plan = cursor.execute(f"EXPLAIN {table.SWEEP.statement}", [1000]).fetchall()
    assert "created_at" in str([line for (line,) in plan if "Index Cond" in line])
    assert not any("Seq Scan" in line for (line,) in plan)


def test_two_attempts_of_one_call_cannot_both_be_committed(
    bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if the server's answer about the first had been wrong.
    bank.make_token_table()
    one = UUID(int=7)
    monkeypatch.setattr(table, "uuid4", lambda: one)
    bank.ask(f"INSERT INTO django_pooled_token VALUES ('{one}')")
    with pytest.raises(AmbiguousCommit):
        retry_transaction(using=bank.alias, commit_check="token", backoff=QUICK)(bank.deposit)()
    assert (bank.attempts, bank.balance) == (1, 0)


def test_tokens_without_their_app_are_refused_with_the_way_to_get_it(
    bank: Bank, settings: Any
) -> None:
    settings.INSTALLED_APPS = ["django_pooled", "tests.app"]
    with pytest.raises(ImproperlyConfigured, match=r"django_pooled\.tokens.*migrate"):
        retry_transaction(using=bank.alias, commit_check="token")(bank.deposit)()
    assert bank.attempts == 0


@pytest.mark.parametrize(
    ("answer", "fault", "attempts", "callbacks"),
    [
        (True, "answer_lost", 1, 1),
        (False, "refused", 2, 1),
        # The server says that it was committed.
        (False, "answer_lost", 1, 0),
        (None, "answer_lost", 1, 0),
    ],
)
def test_a_caller_s_own_check_decides(
    bank: Bank, answer: bool | None, fault: StatementFaultKind, attempts: int, callbacks: int
) -> None:
    asked: list[tuple[Any, ...]] = []

    def was_committed(*args: Any, **kwargs: Any) -> bool | None:
        # With Django's connection as anywhere else, and transactions of its own.
        asked.append((args, kwargs))
        with transaction.atomic(using=bank.alias), connections[bank.alias].cursor() as cursor:
            cursor.execute("SELECT balance FROM account")
        return answer

    @retry_transaction(using=bank.alias, commit_check=was_committed, backoff=QUICK)
    def deposit(amount: int, *, to: str) -> None:
        bank.deposit()

    bank.proxy.fault_at_commit(fault)
    if not callbacks:
        with pytest.raises(AmbiguousCommit):
            deposit(1, to="me")
    else:
        deposit(1, to="me")
    assert asked == [((1,), {"to": "me"})]
    assert (bank.attempts, bank.called_back) == (attempts, callbacks)


def test_a_caller_s_own_check_gets_lists_that_the_body_has_used_up(bank: Bank) -> None:
    asked: list[object] = []

    def was_committed(rows: list[dict[str, int]], *, tags: set[str]) -> bool:
        asked.append((rows, tags))
        return True

    @retry_transaction(using=bank.alias, commit_check=was_committed, backoff=QUICK)
    def deposit(rows: list[dict[str, int]], *, tags: set[str]) -> None:
        rows.pop()["amount"] = 0
        tags.clear()
        bank.deposit()

    rows, tags = [{"amount": 1}], {"new"}
    bank.proxy.fault_at_commit("answer_lost")
    deposit(rows, tags=tags)
    assert asked == [([{"amount": 1}], {"new"})]
    # What was committed keeps what it did to them.
    assert (rows, tags) == ([], set())


def test_the_copy_of_containers_is_as_deep_as_they_go_and_holds_the_same_objects() -> None:
    thing = object()
    given: Any = ({"a": [thing, deque([{1}])]}, frozenset({2}))
    copied = copy_of(given)
    given[0]["a"][1][0].add(3)
    given[0]["a"].append(4)
    assert copied == ({"a": [thing, deque([{1}])]}, frozenset({2}))
    assert copied[0]["a"][0] is thing


def test_a_caller_s_own_check_is_asked_only_when_the_transaction_is_over(bank: Bank) -> None:
    bank.proxy.fault_at_commit("stranded")

    def was_committed() -> bool:
        open_ones = bank.ask(
            "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
        )
        assert open_ones == (0,)
        return bool(bank.balance)

    decorate = retry_transaction(using=bank.alias, commit_check=was_committed, backoff=QUICK)
    decorate(bank.deposit)()
    assert (bank.attempts, bank.balance, bank.called_back) == (2, 1, 1)


def test_a_check_that_fails_leaves_the_commit_ambiguous(bank: Bank) -> None:
    def was_committed() -> bool:
        raise LookupError("no such deposit")

    bank.proxy.fault_at_commit("answer_lost")
    with pytest.raises(AmbiguousCommit):
        retry_transaction(using=bank.alias, commit_check=was_committed)(bank.deposit)()


FAR = "UPDATE far_account SET balance = balance + 1"

# Ways to write rows of a foreign server, each of which takes Django's cursor.
FAR_WRITES: dict[str, Callable[[Any], object]] = {
    "execute": lambda cursor: cursor.execute(FAR),
    "a comment above": lambda cursor: cursor.execute("/* pays */ " + FAR),
    "bytes": lambda cursor: cursor.execute(FAR.encode()),
    "psycopg.sql": lambda cursor: cursor.execute(sql.SQL(FAR)),
    "executemany": lambda cursor: cursor.executemany(FAR + " + %s", [[0]]),
    "EXPLAIN ANALYZE": lambda cursor: cursor.execute("EXPLAIN ANALYZE " + FAR),
    "a setting before": lambda cursor: cursor.execute("SET LOCAL work_mem = '1MB'; " + FAR),
    "WITH": lambda cursor: cursor.execute(f"WITH n AS ({FAR} RETURNING 1) SELECT 1"),
    "DO": lambda cursor: cursor.execute(f"DO $$ BEGIN {FAR}; END $$"),
    "CALL": lambda cursor: cursor.execute("CALL pay_far()"),
    "a function": lambda cursor: cursor.execute("SELECT paid_far()"),
    "callproc": lambda cursor: cursor.callproc("paid_far"),
    "a view": lambda cursor: cursor.execute("SELECT * FROM paying_far"),
    "COPY from a function": lambda cursor: list(
        rows_of(cursor, "COPY (SELECT paid_far()) TO STDOUT")
    ),
    "stream": lambda cursor: list(cursor.cursor.stream("SELECT paid_far()")),
    "a named cursor": lambda cursor: named(cursor, "SELECT paid_far()"),
    "psycopg's own cursor": lambda cursor: psycopg.RawCursor(cursor.connection).execute(FAR),
}


def rows_of(cursor: Any, statement: str) -> Iterator[Any]:
    with cursor.copy(statement) as copy:
        yield from copy.rows()


def named(cursor: Any, statement: str) -> None:
    with cursor.db.chunked_cursor() as other:
        other.execute(statement)
        other.fetchall()


@pytest.fixture
def far(bank: Bank) -> Bank:
    """The bank, with another way to its account: by a foreign table."""
    if not bank.ask("SELECT 1 FROM pg_available_extensions WHERE name = 'postgres_fdw'"):
        pytest.skip("this PostgreSQL comes without postgres_fdw")
    server = bank.server
    bank.ask("CREATE EXTENSION postgres_fdw")
    bank.ask(
        f"CREATE SERVER itself FOREIGN DATA WRAPPER postgres_fdw "
        f"OPTIONS (host '{server.host}', port '{server.port}', dbname '{bank.database}')"
    )
    bank.ask(
        f"CREATE USER MAPPING FOR {server.user} SERVER itself "
        f"OPTIONS (user '{server.user}', password '{server.password}')"
    )
    bank.ask(
        "CREATE FOREIGN TABLE far_account (balance int) SERVER itself "
        "OPTIONS (table_name 'account')"
    )
    bank.ask(f"CREATE PROCEDURE pay_far() LANGUAGE sql AS '{FAR}'")
    bank.ask(f"CREATE FUNCTION paid_far() RETURNS int LANGUAGE sql AS '{FAR} RETURNING 1'")
    # A statement's text does not show what a view calls.
    bank.ask("CREATE VIEW paying_far AS SELECT paid_far()")
    return bank


@pytest.mark.parametrize("way", FAR_WRITES)
def test_rows_of_a_foreign_server_alone_are_written_once_though_the_answer_is_lost(
    far: Bank, way: str
) -> None:
    # They give the local transaction no id, and are committed with it.
    @retry_transaction(using=far.alias, backoff=QUICK)
    def deposit() -> None:
        far.attempts += 1
        with connections[far.alias].cursor() as cursor:
            FAR_WRITES[way](cursor)

    far.proxy.fault_at_commit("answer_lost")
    deposit()
    assert far.proxy.triggered() == 1
    # Where a condition comes first, which does not hold, COMMIT was never reached.
    assert (far.attempts, far.balance) == (2 if way == "a view" else 1, 1)


def test_foreign_rows_are_not_written_again_when_commit_fails_after_theirs(far: Bank) -> None:
    far.ask("CREATE TABLE shift (name text)")

    @retry_transaction(
        using=far.alias, backoff=QUICK, isolation_level=psycopg.IsolationLevel.SERIALIZABLE
    )
    def deposit() -> None:
        far.attempts += 1
        with connections[far.alias].cursor() as cursor:
            cursor.execute("SELECT count(*) FROM shift")
            conflict = far.attempts == 1
            if conflict:
                other = far.connect()
                other.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
                other.execute("SELECT count(*) FROM shift")
                other.execute("INSERT INTO shift VALUES ('late')")
            cursor.execute("INSERT INTO shift VALUES ('early')")
            cursor.execute(FAR)
            if conflict:
                other.commit()
                other.close()

    with pytest.raises(AmbiguousCommit, match="foreign") as caught:
        deposit()
    assert isinstance(caught.value.__cause__, OperationalError)
    assert (far.attempts, far.balance) == (1, 1)


def test_a_deferred_constraint_that_fails_leaves_no_foreign_rows(far: Bank) -> None:
    far.ask("CREATE TABLE slot (number int UNIQUE DEFERRABLE INITIALLY DEFERRED)")

    # A deferred constraint fails before anything is committed anywhere.
    @retry_transaction(using=far.alias, backoff=QUICK, retry_on=["23505"], max_attempts=2)
    def take() -> None:
        far.attempts += 1
        with connections[far.alias].cursor() as cursor:
            cursor.execute(FAR)
            cursor.execute("INSERT INTO slot VALUES (1), (%s)", [far.attempts])

    take()
    assert (far.attempts, far.balance) == (2, 1)


def test_a_lost_commit_that_failed_may_have_left_foreign_rows(far: Bank) -> None:
    far.proxy.fault_at_commit("refused")
    with pytest.raises(AmbiguousCommit):
        retry_transaction(using=far.alias, backoff=QUICK)(far.deposit)()
    assert (far.attempts, far.balance) == (1, 0)


@pytest.mark.parametrize("mode", ["xid", "token"])
def test_what_was_written_in_spite_of_read_only_is_written_once(bank: Bank, mode: str) -> None:
    bank.make_token_table()
    bank.ask(
        "CREATE FUNCTION paid() RETURNS int LANGUAGE sql "
        "AS 'UPDATE account SET balance = balance + 1 RETURNING 1'"
    )
    bank.ask("CREATE VIEW paying AS SELECT paid()")

    @retry_transaction(using=bank.alias, backoff=QUICK, commit_check=mode, read_only=True)
    def deposit() -> None:
        with connections[bank.alias].cursor() as cursor:
            cursor.execute("SET TRANSACTION READ WRITE")
            cursor.execute("SELECT * FROM paying")
            cursor.execute("UPDATE account SET balance = balance")

    bank.proxy.fault_at_commit("answer_lost")
    deposit()
    assert bank.proxy.triggered() == 1
    assert bank.balance == 1


@pytest.fixture
def clerk(bank: Bank) -> Bank:
    """The bank, to a user who can take on the role of a clerk with an account of its own."""
    bank.make_token_table()
    bank.ask("CREATE ROLE clerk")
    bank.ask("CREATE SCHEMA desk AUTHORIZATION clerk")
    bank.ask("GRANT ALL ON account TO clerk")
    return bank


HINDRANCES = {
    "a role": "SET LOCAL ROLE clerk",
    "a search_path": "SET LOCAL search_path TO desk",
}


@pytest.mark.parametrize("fault", [None, "refused", "answer_lost"])
@pytest.mark.parametrize("hindrance", HINDRANCES)
def test_a_body_that_keeps_its_token_out_is_run_without_it(
    clerk: Bank, hindrance: str, fault: StatementFaultKind | None
) -> None:
    @retry_transaction(using=clerk.alias, commit_check="token", backoff=QUICK, max_attempts=2)
    def deposit() -> None:
        with connections[clerk.alias].cursor() as cursor:
            cursor.execute(HINDRANCES[hindrance])
            cursor.execute("UPDATE public.account SET balance = balance + 1")

    if fault is not None:
        # The attempt that fails by the token sends no COMMIT.
        clerk.proxy.fault_at_commit(fault)
    deposit()
    assert clerk.proxy.triggered() == (fault is not None)
    assert clerk.balance == 1


def test_a_body_that_makes_its_transaction_read_only_needs_no_token(clerk: Bank) -> None:
    clerk.ask("CREATE FUNCTION told() RETURNS int LANGUAGE sql AS 'SELECT balance FROM account'")

    @retry_transaction(using=clerk.alias, commit_check="token", backoff=QUICK, max_attempts=1)
    def read() -> int:
        with connections[clerk.alias].cursor() as cursor:
            cursor.execute("SET TRANSACTION READ ONLY")
            cursor.execute("SELECT told()")
            told: int = cursor.fetchone()[0]
            return told

    assert read() == 0


def test_a_statement_that_its_token_failed_in_a_savepoint_is_run_without_it(clerk: Bank) -> None:
    @retry_transaction(using=clerk.alias, commit_check="token", backoff=QUICK, max_attempts=1)
    def deposit() -> bool:
        with connections[clerk.alias].cursor() as cursor:
            cursor.execute("SET LOCAL ROLE clerk")
            try:
                with transaction.atomic(using=clerk.alias):
                    cursor.execute("UPDATE public.account SET balance = balance + 1")
            except ProgrammingError:
                return False
            return True

    assert deposit()
    assert clerk.balance == 1


def test_what_the_body_itself_may_not_write_stays_an_error(clerk: Bank) -> None:
    @retry_transaction(using=clerk.alias, commit_check="token", backoff=QUICK)
    def deposit() -> None:
        clerk.attempts += 1
        with connections[clerk.alias].cursor() as cursor:
            cursor.execute("SET TRANSACTION READ ONLY")
            cursor.execute("UPDATE account SET balance = balance + 1")

    with pytest.raises(InternalError, match="read-only"):
        deposit()
    assert clerk.balance == 0


@pytest.fixture
def strict_clerk(clerk: Bank) -> Bank:
    """A clerk who may not ask for a transaction's id, as opposed to the user."""
    clerk.ask("CREATE ROLE owner LOGIN PASSWORD 'x' IN ROLE clerk")
    clerk.ask("GRANT ALL ON account, django_pooled_token TO owner")
    for function in ("pg_current_xact_id_if_assigned", "pg_current_xact_id"):
        clerk.ask(f"REVOKE EXECUTE ON FUNCTION {function}() FROM PUBLIC")
        clerk.ask(f"GRANT EXECUTE ON FUNCTION {function}() TO owner")
    connections[clerk.alias].settings_dict.update(USER="owner", PASSWORD="x")
    return clerk


@pytest.mark.parametrize("mode", ["xid", "token"])
@pytest.mark.parametrize("many", [False, True], ids=["execute", "executemany"])
def test_a_role_that_may_not_ask_writes_all_the_same(
    strict_clerk: Bank, mode: str, many: bool
) -> None:
    bank = strict_clerk

    @retry_transaction(using=bank.alias, commit_check=mode, backoff=QUICK, max_attempts=1)
    def deposit() -> None:
        with connections[bank.alias].cursor() as cursor:
            cursor.execute("SET LOCAL ROLE clerk")
            if many:
                cursor.executemany("UPDATE account SET balance = balance + %s", [[1]])
            else:
                cursor.execute("UPDATE account SET balance = balance + 1")

    deposit()
    assert bank.balance == 1
    bank.proxy.fault_at_commit("answer_lost")
    with pytest.raises(AmbiguousCommit):
        deposit()
    assert bank.balance == 2


def test_a_role_that_may_not_ask_reads_all_the_same(strict_clerk: Bank) -> None:
    @retry_transaction(using=strict_clerk.alias, backoff=QUICK, max_attempts=1)
    def read() -> int:
        with connections[strict_clerk.alias].cursor() as cursor:
            cursor.execute("SET LOCAL ROLE clerk")
            cursor.execute("SELECT balance FROM account")
            balance: int = cursor.fetchone()[0]
            return balance

    assert read() == 0


TELL = "NOTIFY paid"
NOTIFICATIONS: dict[str, Callable[[Any], object]] = {
    "NOTIFY": lambda cursor: cursor.execute(TELL),
    "bytes": lambda cursor: cursor.execute(b"-- told\nNOTIFY paid"),
    "psycopg.sql": lambda cursor: cursor.execute(
        sql.SQL("NOTIFY {}").format(sql.Identifier("paid"))
    ),
    "pg_notify()": lambda cursor: cursor.execute("SELECT pg_notify('paid', '')"),
    "executemany": lambda cursor: cursor.executemany("SELECT pg_notify('paid', %s)", [["a"]]),
    "DO": lambda cursor: cursor.execute("DO $$ BEGIN NOTIFY paid; END $$"),
    "a function": lambda cursor: cursor.execute("SELECT tell()"),
    "callproc": lambda cursor: cursor.callproc("tell"),
    "psycopg's own cursor": lambda cursor: psycopg.RawCursor(cursor.connection).execute(
        "NOTIFY paid"
    ),
}


@pytest.mark.parametrize("read_only", [None, True], ids=["", "read only"])
@pytest.mark.parametrize("way", NOTIFICATIONS)
def test_a_notification_alone_is_sent_once_though_the_answer_is_lost(
    bank: Bank, way: str, read_only: bool | None
) -> None:
    bank.ask(
        "CREATE FUNCTION tell() RETURNS text LANGUAGE sql "
        "AS $$ SELECT pg_notify('paid', '')::text $$"
    )

    @retry_transaction(using=bank.alias, backoff=QUICK, read_only=read_only)
    def tell() -> None:
        with connections[bank.alias].cursor() as cursor:
            NOTIFICATIONS[way](cursor)

    with bank.connect(autocommit=True) as listener:
        listener.execute("LISTEN paid")
        bank.proxy.fault_at_commit("answer_lost")
        tell()
        listener.execute("NOTIFY paid, 'the last'")
        heard = [note.payload for note in listener.notifies(timeout=5, stop_after=2)]
    assert bank.proxy.triggered() == 1
    assert heard[1] == "the last"


def test_outcomes_of_lost_commits_are_counted(bank: Bank) -> None:
    kinds: list[StatementFaultKind] = ["refused", "answer_lost"]
    for kind in kinds:
        bank.proxy.fault_at_commit(kind)
        retry_transaction(using=bank.alias, backoff=QUICK)(bank.deposit)()
    assert bank.lost_commits == {"failed": 1, "committed": 1}


def test_an_ordinary_role_can_find_out_too(bank: Bank) -> None:
    bank.ask("CREATE ROLE teller LOGIN PASSWORD 'x'")
    bank.ask("GRANT ALL ON account TO teller")
    connections[bank.alias].settings_dict.update(USER="teller", PASSWORD="x")
    kinds: list[StatementFaultKind] = ["refused", "answer_lost", "stranded"]
    for kind in kinds:
        bank.proxy.fault_at_commit(kind)
        retry_transaction(using=bank.alias, backoff=QUICK)(bank.deposit)()
    assert (bank.attempts, bank.balance, bank.called_back) == (5, 3, 3)


def test_a_callback_s_database_error_restarts_nothing_that_was_found_committed(bank: Bank) -> None:
    def deposit() -> None:
        bank.deposit()
        transaction.on_commit(fail, using=bank.alias)

    def fail() -> None:
        with connections[bank.alias].cursor() as cursor:
            cursor.execute("DO $$ BEGIN RAISE EXCEPTION 'late' USING ERRCODE = '40001'; END $$")

    bank.proxy.fault_at_commit("answer_lost")
    with pytest.raises(OperationalError, match="late"):
        retry_transaction(using=bank.alias, backoff=QUICK)(deposit)()
    assert (bank.attempts, bank.balance, bank.called_back) == (1, 1, 1)


@pytest.mark.skipif(PROGRAM is None, reason="PgBouncer is not installed")
@pytest.mark.parametrize("pool_mode", ["session", "transaction"])
@pytest.mark.parametrize("kind", ["refused", "answer_lost", "stranded"])
def test_behind_pgbouncer_it_is_found_out_too(
    bank: Bank, pool_mode: Any, kind: Any, make_database: MakeDatabase
) -> None:
    with PgBouncer(bank.server, pool_mode) as pooler:
        # The fault strikes between the client and PgBouncer.
        bank.proxy.retarget(pooler.host, pooler.port)
        bank.alias = make_database(
            bank.server, through=bank.proxy, database=bank.database, max_size=3, timeout=10.0
        )
        for _ in range(3):
            retry_transaction(using=bank.alias, backoff=QUICK)(bank.deposit)()
        bank.proxy.fault_at_commit(kind)
        retry_transaction(using=bank.alias, backoff=QUICK)(bank.deposit)()
        assert bank.proxy.triggered() == 1
        assert (bank.balance, bank.called_back) == (4, 4)
        assert bank.attempts == (4 if kind == "answer_lost" else 5)
        connections[bank.alias].close()


@pytest.mark.skipif(PROGRAM is None, reason="PgBouncer is not installed")
@pytest.mark.parametrize("pool_mode", ["session", "transaction"])
@pytest.mark.parametrize("fault", ["refused", "answer_lost", "answer_cut"])
def test_a_server_lost_behind_pgbouncer_is_found_out_too(
    bank: Bank, pool_mode: Any, fault: str, make_database: MakeDatabase
) -> None:
    # The fault strikes between PgBouncer and the server.
    with PgBouncer(bank.server, pool_mode, port=bank.proxy.port) as pooler:
        bank.alias = make_database(bank.server, database=bank.database, max_size=3, timeout=10.0)
        connections.settings[bank.alias]["PORT"] = pooler.port
        retry_transaction(using=bank.alias, backoff=QUICK)(bank.deposit)()
        if fault == "answer_cut":
            # PgBouncer hands on that COMMIT was done, and then an error of its own.
            bank.proxy.fault_at_commit("answer_lost", messages=1)
        else:
            bank.proxy.fault_at_commit(cast("StatementFaultKind", fault))
        retry_transaction(using=bank.alias, backoff=QUICK)(bank.deposit)()
        assert bank.proxy.triggered() == 1
        assert (bank.balance, bank.called_back) == (2, 2)
        assert bank.attempts == (3 if fault == "refused" else 2)
        connections[bank.alias].close()


def test_without_a_server_to_ask_the_commit_stays_ambiguous(
    server: EmbeddedServer, proxy: FaultProxy, make_database: MakeDatabase
) -> None:
    alias = make_database(server, through=proxy, timeout=0.5)
    with psycopg.connect(**server.parameters("postgres"), autocommit=True) as admin:
        admin.execute("DROP TABLE IF EXISTS unasked")
        admin.execute("CREATE TABLE unasked (x int)")

    def go_down_after_the_fault() -> None:
        wait_until(proxy.triggered)
        proxy.down()

    @retry_transaction(using=alias, backoff=QUICK, deadline=2.0)
    def insert() -> None:
        with connections[alias].cursor() as cursor:
            cursor.execute("INSERT INTO unasked VALUES (1)")
        proxy.fault_at_commit("refused")
        threading.Thread(target=go_down_after_the_fault, daemon=True).start()

    with pytest.raises(AmbiguousCommit):
        insert()
    wait_until(lambda: proxy.established() == 0)
    proxy.forward()


def test_a_plain_atomic_block_says_that_its_commit_is_ambiguous(bank: Bank) -> None:
    bank.proxy.fault_at_commit("answer_lost")
    with pytest.raises(AmbiguousCommit), transaction.atomic(using=bank.alias):
        bank.deposit()
    assert (bank.balance, bank.called_back) == (1, 0)


def alive(threads: list[threading.Thread]) -> bool:
    return any(thread.is_alive() for thread in threads)


def test_concurrent_deposits_with_spoiled_commits_take_effect_once_each(bank: Bank) -> None:
    done: list[int] = []
    deposit = retry_transaction(using=bank.alias, max_attempts=20, backoff=QUICK)(bank.deposit)

    def work() -> None:
        for _ in range(25):
            deposit()
            done.append(1)
            connections[bank.alias].close()

    def run() -> None:
        try:
            work()
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    kinds: list[StatementFaultKind] = ["refused", "answer_lost"]
    for kind in kinds * 10:
        before = bank.proxy.triggered()
        bank.proxy.fault_at_commit(kind)
        wait_until(
            partial(lambda seen: bank.proxy.triggered() > seen or not alive(threads), before),
            timeout=30,
        )
    for thread in threads:
        thread.join(60)
    assert bank.balance == len(done) == 100


class TimeIsUp(Exception):
    """What a time limit of the caller's own raises."""


@pytest.fixture
def time_limit() -> Iterator[Callable[[], None]]:
    """Sends the signal whose handler raises."""

    def raise_it(*_: object) -> None:
        raise TimeIsUp

    before = signal.signal(signal.SIGUSR1, raise_it)
    yield partial(os.kill, os.getpid(), signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)


def test_a_time_limit_that_strikes_during_commit_restarts_nothing_and_asks_nobody(
    bank: Bank, time_limit: Callable[[], None]
) -> None:
    def strike() -> None:
        wait_until(bank.proxy.triggered)
        time_limit()

    bank.proxy.fault_at_commit("swallowed", silence=60.0)
    striker = threading.Thread(target=strike)
    striker.start()
    with pytest.raises(TimeIsUp):
        retry_transaction(using=bank.alias, backoff=QUICK)(bank.deposit)()
    striker.join()
    # The next transaction does not run the callbacks of this one.
    with transaction.atomic(using=bank.alias):
        bank.read()
    assert (bank.attempts, bank.called_back) == (2, 0)
    assert bank.lost_commits == {}


def test_a_commit_that_the_server_refuses_is_not_ambiguous_in_a_plain_atomic_block(
    bank: Bank,
) -> None:
    bank.ask("CREATE TABLE once (x int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    with (
        pytest.raises(IntegrityError),
        transaction.atomic(using=bank.alias),
        connections[bank.alias].cursor() as cursor,
    ):
        cursor.execute("INSERT INTO once VALUES (1), (1)")
    assert bank.ask("SELECT count(*) FROM once") == (0,)


def test_a_server_lost_while_it_says_that_something_was_written_has_committed_nothing(
    bank: Bank,
) -> None:
    bank.ask(
        "CREATE FUNCTION deposit() RETURNS void LANGUAGE sql AS "
        "$$ UPDATE account SET balance = balance + 1 $$"
    )
    # Its text does not show what a view calls.
    bank.ask("CREATE VIEW deposit AS SELECT deposit()::text")

    @retry_transaction(using=bank.alias, backoff=QUICK)
    def deposit() -> None:
        bank.attempts += 1
        with connections[bank.alias].cursor() as cursor:
            cursor.execute("SELECT * FROM deposit")

    # The savepoint is there, and the division has failed.
    bank.proxy.fault_at("SAVEPOINT django_pooled_commit", "answer_lost", messages=2)
    deposit()
    assert bank.proxy.triggered() == 1
    assert (bank.attempts, bank.balance) == (2, 1)


def test_a_caller_s_own_check_that_loses_its_connection_is_asked_again(bank: Bank) -> None:
    asked: list[None] = []

    def was_committed() -> bool:
        asked.append(None)
        with connections[bank.alias].cursor() as cursor:
            cursor.execute("SELECT balance AS found FROM account")
            return bool(cursor.fetchone()[0])

    bank.proxy.fault_at_commit("answer_lost")
    bank.proxy.fault_at("SELECT balance AS found", "refused")
    decorate = retry_transaction(using=bank.alias, commit_check=was_committed, backoff=QUICK)
    decorate(bank.deposit)()
    assert (len(asked), bank.proxy.triggered()) == (2, 2)
    assert (bank.attempts, bank.balance, bank.called_back) == (1, 1, 1)


def test_an_id_that_a_crashed_server_gave_to_another_is_no_proof_without_the_token(
    lone: Bank, crash_before_asking: Callable[[Callable[[], object]], None]
) -> None:
    lone.make_token_table()

    def give_the_id_to_others() -> None:
        for _ in range(5):
            lone.ask("SELECT pg_current_xact_id()")

    crash_before_asking(give_the_id_to_others)
    lone.proxy.fault_at_commit("refused")
    retry_transaction(using=lone.alias, commit_check="token", backoff=QUICK)(lone.deposit)()
    assert (lone.attempts, lone.balance, lone.called_back) == (2, 1, 1)


@pytest.fixture
def may_not_ask(bank: Bank) -> None:
    """A role that the server tells of no transaction's end."""
    bank.ask("CREATE ROLE teller LOGIN PASSWORD 'x'")
    bank.ask("GRANT ALL ON account TO teller")
    bank.ask("REVOKE EXECUTE ON FUNCTION pg_xact_status FROM PUBLIC")
    connections[bank.alias].settings_dict.update(USER="teller", PASSWORD="x")


@pytest.mark.usefixtures("may_not_ask")
def test_who_may_not_ask_the_server_learns_nothing(
    bank: Bank, caplog: pytest.LogCaptureFixture
) -> None:
    bank.proxy.fault_at_commit("answer_lost")
    with pytest.raises(AmbiguousCommit):
        retry_transaction(using=bank.alias, backoff=QUICK)(bank.deposit)()
    why = "permission denied for function pg_xact_status"
    assert f"cannot find out whether a COMMIT took effect: {why}" in caplog.text
    assert (bank.attempts, bank.balance, bank.called_back) == (1, 1, 0)


@pytest.mark.usefixtures("may_not_ask")
def test_what_is_idempotent_is_run_again_where_nobody_may_ask(bank: Bank) -> None:
    bank.proxy.fault_at_commit("answer_lost")
    retry_transaction(using=bank.alias, commit_check="idempotent", backoff=QUICK)(bank.deposit)()
    assert (bank.attempts, bank.balance, bank.called_back) == (2, 2, 1)
    assert bank.lost_commits == {"unknown": 1}


def test_old_tokens_that_cannot_be_swept_are_no_reason_to_fail(
    bank: Bank, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bank.make_token_table()
    monkeypatch.setattr(table.SWEEP, "swept_at", {})
    bank.proxy.fault_at("DELETE FROM django_pooled_token", "refused")
    retry_transaction(using=bank.alias, commit_check="token")(bank.deposit)()
    assert "old tokens stay" in caplog.text
    assert (bank.attempts, bank.balance, bank.called_back) == (1, 1, 1)


def test_a_token_is_shown_as_its_uuid() -> None:
    assert str(CommitToken(token=UUID(int=7))) == "00000000-0000-0000-0000-000000000007"


def test_a_server_that_is_no_successor_is_not_believed(
    lone: Bank, make_server: Callable[..., EmbeddedServer]
) -> None:
    other = make_server(fresh=True)
    with psycopg.connect(**other.parameters("postgres"), autocommit=True) as admin:
        admin.execute(f"ALTER ROLE postgres PASSWORD '{lone.server.password}'")
    connections[lone.alias].ensure_connection()
    lone.proxy.retarget(other.host, other.port)
    lone.proxy.fault_at_commit("answer_lost")
    with pytest.raises(AmbiguousCommit):
        retry_transaction(using=lone.alias, backoff=QUICK, deadline=10.0)(lone.deposit)()
    assert (lone.attempts, lone.balance, lone.called_back) == (1, 1, 0)


def test_a_standby_is_asked_again_until_the_deadline(
    lone: Bank, make_server: Callable[..., EmbeddedServer], caplog: pytest.LogCaptureFixture
) -> None:
    standby = make_server(primary=lone.server)
    connections[lone.alias].ensure_connection()
    lone.proxy.retarget(standby.host, standby.port)
    lone.proxy.fault_at_commit("answer_lost")
    with pytest.raises(AmbiguousCommit):
        retry_transaction(using=lone.alias, backoff=QUICK, deadline=1.0)(lone.deposit)()
    assert (
        "cannot find out whether a COMMIT took effect: the transaction is not yet known"
        in caplog.text
    )
    assert (lone.attempts, lone.balance, lone.called_back) == (1, 1, 0)
