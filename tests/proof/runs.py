"""Whole runs, each with its own server, proxy and callers: what the scripts and the tests start."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg

from embedded_postgres import free_port
from tests.proof import crashes, promotions
from tests.proof.bank import Bank, wrong_balances
from tests.proof.callers import Callers, calls_of
from tests.proof.faults import Faults
from tests.proof.history import ALLOWED, anomalies, transactions_of
from tests.proof.lists import Lists, final_reads
from tests.proof.loads import Calls
from tests.proof.storm import rage
from tests.proof.verdict import Tally, fate, stored, untruths
from tests.servers.fault_proxy import FaultProxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from embedded_postgres import EmbeddedServer
    from tests.proof.crashes import Trial
    from tests.proof.verdict import Strike
    from tests.servers.postgresql import Servers

__all__ = [
    "HISTORY_SETTINGS",
    "Proof",
    "Storm",
    "bank",
    "crash",
    "list_append",
    "promote",
    "strike",
]

HISTORY_SETTINGS = {
    # Deadlocks are wanted, waiting a second for each is not.
    "deadlock_timeout": "100ms",
}


class Proof(NamedTuple):
    """What a run has come to."""

    tally: Tally
    """By kind of fault."""
    outcomes: Counter[str]
    """Of all calls, those included that no fault befell."""
    wrong: list[str]
    """What was not as it was said to be; empty if all is well."""
    notes: Counter[str]
    """What else was counted."""


@contextlib.contextmanager
def through_proxy(
    server: EmbeddedServer, *, processes: int, threads: int, coroutines: bool
) -> Iterator[tuple[FaultProxy, Callers]]:
    """Start a proxy before the server, and callers that use it."""
    with (
        FaultProxy(server.host, server.port, listen=free_port()) as proxy,
        Callers(
            server, proxy, processes=processes, threads=threads, coroutines=coroutines
        ) as callers,
    ):
        callers.migrate()
        yield proxy, callers


def strike(
    server: EmbeddedServer, mode: str, number: int, seed: object = 0, *, coroutines: bool = False
) -> Proof:
    """Let so many faults befall calls of two processes with four threads each."""
    with through_proxy(server, processes=2, threads=4, coroutines=coroutines) as (proxy, callers):
        execute(server, Calls.schema(mode))
        faults = Faults(proxy, server, seed)
        callers.start("calls", mode=mode)
        faults.inject(number)
        strikes = faults.end()
        calls = calls_of(callers.stop())
    rows, total = stored(server)
    wrong = untruths(calls, rows)
    if total != rows.total():
        wrong["counter"] = f"the counters are worth {total}, and {rows.total()} rows are there"
    tally = Tally()
    tally.note_strikes(calls, strikes, wrong)
    outcomes = Counter(call.outcome for call in calls)
    return Proof(tally, outcomes, list(wrong.values()), Counter(faults=len(strikes)))


def crash(
    server: EmbeddedServer, mode: str, number: int, seed: object = 0, *, coroutines: bool = False
) -> Proof:
    """Run so many trials of ``crashes``, on a server with its settings."""
    with through_proxy(server, processes=1, threads=3, coroutines=coroutines) as (proxy, callers):
        trials = crashes.Crashes(server, proxy, callers, mode)
        chance = random.Random(f"{seed}")
        found = {}
        cases = itertools.cycle(itertools.product(crashes.PLACES, crashes.ENDS))
        for count, (place, end) in enumerate(itertools.islice(cases, number)):
            found[f"{place}, {end}", count] = trials.run(
                place, end, threads=chance.randint(1, 3), aborting=chance.random() < 0.25
            )
    return judged(found)


def promote(
    servers: Servers,
    version: str,
    mode: str,
    number: int,
    seed: object = 0,
    emulate: Callable[[EmbeddedServer], object] = lambda server: None,
    *,
    coroutines: bool = False,
) -> Proof:
    """Run so many trials of ``promotions``; *emulate* is called with the first primary."""

    def make_standby(primary: EmbeddedServer) -> EmbeddedServer:
        made = servers.make(primary=primary)
        made.start()
        return made

    primary = servers.make(version)
    primary.start()
    emulate(primary)
    with through_proxy(primary, processes=1, threads=3, coroutines=coroutines) as (proxy, callers):
        trials = promotions.Promotions(primary, make_standby, servers.remove, proxy, callers, mode)
        chance = random.Random(f"{seed}")
        found = {}
        cases = itertools.cycle(promotions.CASES)
        for count, (place, failover) in enumerate(itertools.islice(cases, number)):
            run = trials.fail_over if failover else trials.ask_standby
            name = place if failover else f"{place}; standby asked"
            found[name, count] = run(
                place, threads=chance.randint(1, 3), aborting=chance.random() < 0.25
            )
        trials.close()
    return judged(found)


def judged(trials: dict[tuple[str, int], Trial]) -> Proof:
    tally = Tally()
    outcomes, notes = Counter[str](), Counter[str](trials=len(trials), trapped=0)
    wrong = []
    for (name, _), trial in trials.items():
        for call in trial.calls:
            tally.note(name, fate(call, 0), wrong=call.key in trial.wrong)
            outcomes[call.outcome] += 1
        wrong += [f"{name}: {words}" for words in trial.wrong.values()]
        notes["trapped"] += trial.trapped
    return Proof(tally, outcomes, wrong, notes)


class Storm(NamedTuple):
    """A storm, and the calls that it rages over."""

    mode: str
    """Of the callers: a ``commit_check``, or what a peer does."""
    isolation: str
    seconds: float
    seed: object = 0
    coroutines: bool = False

    def over(
        self, server: EmbeddedServer, load: str, schema: list[str]
    ) -> tuple[list[dict[str, Any]], list[Strike], Counter[str]]:
        """Let it rage while sixteen threads call; return what came of it, strikes and notes."""
        with through_proxy(server, processes=2, threads=8, coroutines=self.coroutines) as (
            proxy,
            callers,
        ):
            execute(server, schema)
            faults = Faults(proxy, server, self.seed)
            callers.start(load, mode=self.mode, isolation=self.isolation)
            notes = rage(faults, server, self.seconds, self.seed)
            strikes = faults.end()
            results = callers.stop()
        return results, strikes, notes


def bank(server: EmbeddedServer, storm: Storm) -> Proof:
    """Let a storm rage while sixteen threads transfer money."""
    results, strikes, notes = storm.over(server, "bank", Bank.schema())
    calls = calls_of(results)
    with psycopg.connect(**server.parameters()) as connection:
        rows = Counter(key for (key,) in connection.execute("SELECT key FROM done"))
    transfers = [call for call in calls if not call.key.startswith("audit")]
    wrong = untruths(transfers, rows)
    tally = Tally()
    tally.note_strikes(calls, strikes, wrong)
    notes["attempts"] = sum(len(call.attempts) for call in calls)
    notes["audits"] = sum(len(result["audits"]) for result in results)
    outcomes = Counter(call.outcome for call in calls)
    return Proof(tally, outcomes, [*wrong.values(), *wrong_balances(server, results)], notes)


def list_append(server: EmbeddedServer, storm: Storm) -> Proof:
    """Let a storm rage while sixteen threads append to lists and read them; check the history."""
    results, strikes, notes = storm.over(server, "lists", Lists.schema())
    calls, allowed = calls_of(results), ALLOWED[storm.isolation]
    history = transactions_of(results)
    found = anomalies(history, final_reads(server))
    wrong = [
        f"{name}: {example}"
        for name, examples in found.items()
        if name not in allowed
        for example in examples
    ]
    # Nothing that a call has in the database bears its key.
    truths = {call.key: int(call.outcome == "acknowledged") for call in calls}
    wrong += untruths(calls, truths).values()
    tally = Tally()
    tally.note_strikes(calls, strikes, {})
    notes["attempts"] = len(history)
    notes.update({f"{name} (allowed)": len(found[name]) for name in allowed & found.keys()})
    return Proof(tally, Counter(call.outcome for call in calls), wrong, notes)


def execute(server: EmbeddedServer, statements: list[str]) -> None:
    with psycopg.connect(**server.parameters(), autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)
