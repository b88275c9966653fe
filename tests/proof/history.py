"""A checker of list-append histories: which anomalies of isolation do they show?

The lists give the order of the writes away, since every value is appended once: a read that ends
with it has seen everything before it. From that follow the dependencies between transactions:

* ww: one has appended next after the other, to the same list;
* wr: one has read a list whose last element the other has appended;
* rw: one has read a list that ended just before what the other has appended.

A cycle of them is an anomaly, named by Adya after the kinds in it. The method is that of Elle:
Kingsbury and Alvaro, "Elle: Inferring Isolation Anomalies from Experimental Observations",
https://arxiv.org/abs/2003.10554. Snapshot isolation allows those cycles alone in which two rw stand
next to each other: Cerone and Gotsman, "Analysing Snapshot Isolation".
"""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.proof.graph import Dependencies

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["ALLOWED", "Operation", "Transaction", "anomalies", "transactions_of"]

ALLOWED: dict[str, set[str]] = {"SERIALIZABLE": set(), "REPEATABLE_READ": {"G2"}}
"""Anomalies that are none at that level; PostgreSQL's repeatable read is snapshot isolation."""


class Operation(NamedTuple):
    """An append to a list, or a read of one."""

    key: int
    appended: int | None
    """The value; None for a read."""
    read: list[int] | None
    """What was read; None for an append."""


class Transaction(NamedTuple):
    """One attempt of a transaction."""

    name: str
    outcome: str
    """"ok", "fail", or "unknown" where nobody could tell."""
    operations: list[Operation]

    def appends(self) -> list[tuple[int, int]]:
        """Return list and value of each."""
        return [(key, value) for key, value, _ in self.operations if value is not None]


def transactions_of(results: Iterable[dict[str, Any]]) -> list[Transaction]:
    """Return the transactions of all processes."""
    return [
        Transaction(name, outcome, [Operation(*operation) for operation in operations])
        for result in results
        for name, outcome, operations in result["transactions"]
    ]


def anomalies(
    history: Sequence[Transaction], final: Mapping[int, list[int]]
) -> dict[str, list[str]]:
    """Return what is wrong with a history, by the name of the anomaly.

    ============= ===================================================================
    lost          what a transaction appended that is "ok" is not there in the end
    duplicate     a list has a value twice
    alien         a list has a value that nobody has appended
    torn          of an "unknown" transaction one append is there, another is not
    incompatible  a read is no beginning of what the list is in the end
    internal      a transaction does not see what it has itself read or appended
    G1a           what a failed transaction appended is there, or was read
    G1b           a transaction was read in the middle of its appends
    G0            a cycle of ww
    G1c           a cycle of ww and wr
    G-single      a cycle with one rw
    G-nonadjacent a cycle with several rw, none next to another
    G2            another cycle with rw: two of them stand next to each other
    ============= ===================================================================

    Args:
        history: every attempt of every transaction.
        final: every list, read after all of them.
    """
    return dict(_Checker(history, final).found)


class _Checker:
    def __init__(self, history: Sequence[Transaction], final: Mapping[int, list[int]]) -> None:
        self.found: defaultdict[str, list[str]] = defaultdict(list)
        self._final = final
        self._writers = {append: writer for writer in history for append in writer.appends()}
        self._there = {(key, value) for key, order in final.items() for value in order}
        self._dependencies = Dependencies()
        self._look_at_the_end()
        for transaction in history:
            self._look_at_appends(transaction)
            if self._is_committed(transaction):
                self._look_at_reads(transaction)
        for name, example in self._dependencies.cycles():
            self.found[name].append(example)

    def _look_at_the_end(self) -> None:
        for key, order in self._final.items():
            for value, times in Counter(order).items():
                writer = self._writers.get((key, value))
                if writer is None:
                    self.found["alien"].append(f"{value} in list {key}")
                elif writer.outcome == "fail":
                    self._note("G1a", writer, f"{value} in list {key} in the end")
                if times > 1:
                    self.found["duplicate"].append(f"{value} in list {key}, {times} times")
            for before, after in pairwise(order):
                self._depend(self._writers.get((key, before)), "ww", (key, after))

    def _look_at_appends(self, transaction: Transaction) -> None:
        appends = transaction.appends()
        missing = [append for append in appends if append not in self._there]
        if missing and transaction.outcome == "ok":
            self._note("lost", transaction, f"{missing}")
        elif missing and transaction.outcome == "unknown" and len(missing) < len(appends):
            self._note("torn", transaction, f"{missing}")

    def _is_committed(self, transaction: Transaction) -> bool:
        if transaction.outcome == "unknown":
            return any(append in self._there for append in transaction.appends())
        return transaction.outcome == "ok"

    def _look_at_reads(self, transaction: Transaction) -> None:
        own: defaultdict[int, list[int]] = defaultdict(list)
        seen: dict[int, list[int]] = {}
        for key, appended, read in transaction.operations:
            if appended is not None:
                own[key].append(appended)
                continue
            assert read is not None
            foreign = _without_end(read, own[key])
            if foreign is None or foreign != seen.setdefault(key, foreign):
                self._note("internal", transaction, f"list {key}: {read}")
            else:
                self._look_at_read(transaction, key, foreign)

    def _look_at_read(self, reader: Transaction, key: int, read: list[int]) -> None:
        failed = [value for value in read if self._outcome(key, value) == "fail"]
        order = self._final.get(key, [])
        if failed:
            self._note("G1a", reader, f"{failed} in list {key}")
        elif order[: len(read)] != read:
            self._note("incompatible", reader, f"list {key}: {read}, in the end {order}")
        elif len(read) < len(order):
            self._depend(reader, "rw", (key, order[len(read)]))
        writer = self._writers.get((key, read[-1])) if read else None
        if writer is not None and writer is not reader:
            last = [value for of, value in writer.appends() if of == key][-1]
            if read[-1] != last:
                self._note("G1b", reader, f"list {key} ends in {read[-1]} by {writer.name}")
            self._dependencies.add(writer.name, "wr", reader.name)

    def _outcome(self, key: int, value: int) -> str:
        writer = self._writers.get((key, value))
        return "" if writer is None else writer.outcome

    def _depend(self, before: Transaction | None, kind: str, append: tuple[int, int]) -> None:
        after = self._writers.get(append)
        if before is not None and after is not None:
            self._dependencies.add(before.name, kind, after.name)

    def _note(self, name: str, transaction: Transaction, words: str) -> None:
        self.found[name].append(f"{transaction.name} ({transaction.outcome}): {words}")


def _without_end(read: list[int], own: list[int]) -> list[int] | None:
    """Return the part of a read before the reader's own appends; None if they are not its end."""
    if not own:
        return read
    return read[: -len(own)] if read[-len(own) :] == own else None
