from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import psycopg
import pytest
from django.db import OperationalError, connections, transaction

from django_pooled import AmbiguousCommit, Backoff, retry_transaction
from tests.servers import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from django_pooled.base import DatabaseWrapper
    from example_project.embedded_postgres import EmbeddedServer
    from tests.fault_proxy import FaultProxy, StatementFaultKind
    from tests.pools import MakeDatabase

QUICK = Backoff(initial=0.001, maximum=0.002)


class Bank:
    """A row that each call raises by one, behind a proxy that can spoil the COMMIT."""

    def __init__(self, alias: str, server: EmbeddedServer, proxy: FaultProxy) -> None:
        self.alias, self.server, self.proxy = alias, server, proxy
        self.attempts = 0
        self.called_back = 0
        self.ask("CREATE TABLE account (balance int)")
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

    def ask(self, statement: str) -> Any:
        with psycopg.connect(**self.server.parameters("postgres"), autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchone() if cursor.description else None

    @property
    def balance(self) -> int:
        balance: int = self.ask("SELECT balance FROM account")[0]
        return balance


@pytest.fixture
def bank(
    own_server: EmbeddedServer,
    make_proxy: Callable[[EmbeddedServer], FaultProxy],
    make_database: MakeDatabase,
) -> Bank:
    proxy = make_proxy(own_server)
    alias = make_database(own_server, through=proxy, max_size=3, timeout=10.0)
    return Bank(alias, own_server, proxy)


def test_a_commit_that_never_arrived_is_run_again(bank: Bank) -> None:
    bank.proxy.fault_at_commit("refused")
    retry_transaction(using=bank.alias, backoff=QUICK)(bank.deposit)()
    assert bank.proxy.triggered() == 1
    assert (bank.attempts, bank.balance, bank.called_back) == (2, 1, 1)


def test_a_commit_whose_answer_was_lost_is_found_committed(bank: Bank) -> None:
    bank.proxy.fault_at_commit("answer_lost")
    retry_transaction(using=bank.alias, backoff=QUICK)(bank.deposit)()
    assert bank.proxy.triggered() == 1
    assert (bank.attempts, bank.balance, bank.called_back) == (1, 1, 1)
    assert connections[bank.alias].get_autocommit()


def test_a_transaction_left_open_by_a_black_hole_is_ended_and_run_again(bank: Bank) -> None:
    bank.proxy.fault_at_commit("stranded")
    retry_transaction(using=bank.alias, backoff=QUICK)(bank.deposit)()
    assert bank.proxy.triggered() == 1
    assert (bank.attempts, bank.balance, bank.called_back) == (2, 1, 1)


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
    with pytest.raises(AmbiguousCommit, match="cannot be told") as ambiguous:
        retry_transaction(using=bank.alias, commit_check="raise", backoff=QUICK)(bank.deposit)()
    assert isinstance(ambiguous.value, OperationalError)
    assert (bank.attempts, bank.balance, bank.called_back) == (1, 1, 0)


def test_a_server_that_was_restarted_meanwhile_makes_a_found_commit_doubtful(
    bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    # After a crash the same id may belong to somebody else's transaction.
    bank.proxy.fault_at_commit("answer_lost")
    pool = cast("DatabaseWrapper", connections[bank.alias]).pool
    assert pool is not None
    checkout = pool.checkout

    def restart_first() -> Any:
        bank.server.kill()
        bank.server.start()
        return checkout()

    monkeypatch.setattr(pool, "checkout", restart_first)
    connections[bank.alias].ensure_connection()
    with pytest.raises(AmbiguousCommit):
        retry_transaction(using=bank.alias, backoff=QUICK)(bank.deposit)()
    monkeypatch.undo()
    assert (bank.attempts, bank.balance) == (1, 1)


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

    @retry_transaction(using=alias, backoff=QUICK)
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
