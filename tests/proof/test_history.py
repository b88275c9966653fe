from __future__ import annotations

import random
from collections import defaultdict
from copy import deepcopy

import pytest

from tests.proof.history import ALLOWED, Operation, Transaction, anomalies

X, Y, Z = 1, 2, 3


def append(key: int, value: int) -> Operation:
    return Operation(key, value, None)


def read(key: int, *elements: int) -> Operation:
    return Operation(key, None, list(elements))


def ok(name: str, *operations: Operation) -> Transaction:
    return Transaction(name, "ok", list(operations))


def failed(name: str, *operations: Operation) -> Transaction:
    return Transaction(name, "fail", list(operations))


def unknown(name: str, *operations: Operation) -> Transaction:
    return Transaction(name, "unknown", list(operations))


HISTORIES: dict[str, tuple[list[Transaction], dict[int, list[int]], set[str]]] = {
    "one after another": (
        [
            ok("a", read(X), append(X, 1), read(X, 1)),
            ok("b", read(X, 1), append(Y, 2)),
            ok("c", append(X, 3), append(X, 4), read(X, 1, 3, 4), read(Y, 2)),
        ],
        {X: [1, 3, 4], Y: [2]},
        set(),
    ),
    "nothing": ([], {}, set()),
    "failed and unseen": ([failed("a", append(X, 1)), ok("b", read(X))], {}, set()),
    "unknown and there": (
        [unknown("a", append(X, 1), append(Y, 2)), ok("b", read(X, 1))],
        {X: [1], Y: [2]},
        set(),
    ),
    "unknown and not there": (
        [unknown("a", append(X, 1), append(Y, 2)), ok("b", read(X))],
        {},
        set(),
    ),
    "what a failed attempt read counts for nothing": (
        [failed("a", read(X, 7)), ok("b", append(X, 1))],
        {X: [1]},
        set(),
    ),
    "lost": ([ok("a", append(X, 1))], {X: []}, {"lost"}),
    "seen and then lost": (
        [ok("a", append(X, 1)), ok("b", read(X, 1))],
        {},
        {"lost", "incompatible"},
    ),
    "duplicate": ([ok("a", append(X, 1))], {X: [1, 1]}, {"duplicate"}),
    "alien": ([ok("a", append(X, 1))], {X: [1, 2]}, {"alien"}),
    "torn": ([unknown("a", append(X, 1), append(Y, 2))], {X: [1]}, {"torn"}),
    "incompatible": (
        [ok("a", append(X, 1)), ok("b", append(X, 2)), ok("c", read(X, 2))],
        {X: [1, 2]},
        {"incompatible"},
    ),
    "a failed append is there": ([failed("a", append(X, 1))], {X: [1]}, {"G1a"}),
    "a failed append was read": ([failed("a", append(X, 1)), ok("b", read(X, 1))], {}, {"G1a"}),
    "intermediate read": (
        [ok("a", append(X, 1), append(X, 2)), ok("b", read(X, 1))],
        {X: [1, 2]},
        # It also has to come after what it has seen, and before what it has not.
        {"G1b", "G-single"},
    ),
    "own append unseen": ([ok("a", append(X, 1), read(X))], {X: [1]}, {"internal"}),
    "another snapshot at the second read": (
        [ok("a", append(X, 1)), ok("b", read(X), read(X, 1))],
        {X: [1]},
        {"internal"},
    ),
    "write cycle": (
        [ok("a", append(X, 1), append(Y, 1)), ok("b", append(X, 2), append(Y, 2))],
        {X: [1, 2], Y: [2, 1]},
        {"G0"},
    ),
    "circular information flow": (
        [ok("a", append(X, 1), read(Y, 2)), ok("b", append(Y, 2), read(X, 1))],
        {X: [1], Y: [2]},
        {"G1c"},
    ),
    "lost update": (
        [
            ok("a", append(X, 1)),
            ok("b", read(X, 1), append(X, 2)),
            ok("c", read(X, 1), append(X, 3)),
        ],
        {X: [1, 2, 3]},
        {"G-single"},
    ),
    "read skew": (
        [ok("a", append(X, 1), append(Y, 2)), ok("b", read(X, 1), read(Y))],
        {X: [1], Y: [2]},
        {"G-single"},
    ),
    "long fork": (
        [
            ok("a", append(X, 1)),
            ok("b", append(Y, 2)),
            ok("c", read(X, 1), read(Y)),
            ok("d", read(X), read(Y, 2)),
        ],
        {X: [1], Y: [2]},
        {"G-nonadjacent"},
    ),
    "write skew": (
        [ok("a", read(X), append(Y, 1)), ok("b", read(Y), append(X, 2))],
        {X: [2], Y: [1]},
        {"G2"},
    ),
    "read-only anomaly of snapshot isolation": (
        # Fekete, O'Neil, O'Neil: only with the reader is there a cycle.
        [
            ok("a", read(X), read(Y), append(X, 1)),
            ok("b", append(Y, 2)),
            ok("c", read(X), read(Y, 2)),
        ],
        {X: [1], Y: [2]},
        {"G2"},
    ),
    "three in write skew": (
        [
            ok("a", read(X), append(Y, 1)),
            ok("b", read(Y), append(Z, 2)),
            ok("c", read(Z), append(X, 3)),
        ],
        {X: [3], Y: [1], Z: [2]},
        {"G2"},
    ),
    "two anomalies apart": (
        [
            ok("a", read(X), append(Y, 1)),
            ok("b", read(Y), append(X, 2)),
            ok("c", append(Z, 3), append(9, 3)),
            ok("d", append(Z, 4), append(9, 4)),
        ],
        {X: [2], Y: [1], Z: [3, 4], 9: [4, 3]},
        {"G2", "G0"},
    ),
}


@pytest.mark.parametrize("name", HISTORIES)
def test_the_checker_finds_what_is_there_and_nothing_else(name: str) -> None:
    history, final, expected = HISTORIES[name]
    assert anomalies(history, final).keys() == expected


class Database:
    """Transactions of lists that overlap at random, under a chosen rule of who may commit."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.lists: defaultdict[int, list[int]] = defaultdict(list)
        self.history: list[Transaction] = []

    def run(self, transactions: int, *, snapshot: bool, first_committer_wins: bool) -> None:
        for number in range(transactions):
            group = self.random.randint(2, 4) if snapshot else 1
            seen = deepcopy(self.lists)
            written: set[int] = set()
            for one in range(group):
                self._one(f"{number}.{one}", seen, written, first_committer_wins)

    def _one(
        self, name: str, seen: dict[int, list[int]], written: set[int], first_committer_wins: bool
    ) -> None:
        view, appended, operations = deepcopy(seen), [], []
        for number in range(self.random.randint(1, 4)):
            key = self.random.randrange(6)
            if self.random.random() < 0.5:
                value = int(name.replace(".", "")) * 10 + number
                view[key].append(value)
                appended.append((key, value))
                operations.append(append(key, value))
            else:
                operations.append(read(key, *view[key]))
        keys = {key for key, _ in appended}
        loses = first_committer_wins and not keys.isdisjoint(written)
        self.history.append((failed if loses else ok)(name, *operations))
        if not loses:
            written |= keys
            for key, value in appended:
                self.lists[key].append(value)


@pytest.mark.parametrize("seed", range(20))
def test_serial_histories_have_no_anomaly(seed: int) -> None:
    database = Database(seed)
    database.run(300, snapshot=False, first_committer_wins=False)
    assert anomalies(database.history, database.lists) == {}


@pytest.mark.parametrize("seed", range(20))
def test_snapshot_isolation_has_no_anomaly_but_those_it_is_allowed(seed: int) -> None:
    database = Database(seed)
    database.run(300, snapshot=True, first_committer_wins=True)
    assert anomalies(database.history, database.lists).keys() == ALLOWED["REPEATABLE_READ"]


@pytest.mark.parametrize("seed", range(20))
def test_snapshots_without_a_conflict_at_writing_lose_updates(seed: int) -> None:
    database = Database(seed)
    database.run(300, snapshot=True, first_committer_wins=False)
    assert "G-single" in anomalies(database.history, database.lists)


@pytest.mark.parametrize("seed", range(20))
def test_a_serial_history_with_one_falsehood_is_found_out(seed: int) -> None:
    database = Database(seed)
    database.run(300, snapshot=False, first_committer_wins=False)
    writers = [one for one in database.history if one.appends()]
    place = database.history.index(database.random.choice(writers))
    liar = database.history[place]
    database.history[place] = liar._replace(outcome="fail")
    assert "G1a" in anomalies(database.history, database.lists)
    database.history[place] = liar
    key, value = liar.appends()[0]
    database.lists[key].remove(value)
    assert "lost" in anomalies(database.history, database.lists)
    # Done twice, as by an attempt that was run again although it had been committed.
    database.lists[key] += [value, value]
    assert "duplicate" in anomalies(database.history, database.lists)
