"""A standby promoted while a COMMIT has no answer yet: one that had received it, or had not.

Replication is asynchronous. Afterwards, before anybody can ask, other transactions on the new
primary take up the ids that the old one had given out.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg

from tests.proof.callers import calls_of
from tests.proof.crashes import TRAP, Trial, take_ids, taken, value
from tests.proof.loads import Calls
from tests.proof.verdict import stored, untruths
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from embedded_postgres import EmbeddedServer
    from tests.proof.callers import Callers
    from tests.servers.fault_proxy import FaultProxy

__all__ = ["CASES", "Promotions"]

PLACES = ("nothing received", "not the commit received", "all received", "commit never sent")
"""What the standby has of the transaction when the primary dies, with COMMIT done there.

In the last case it has everything, and COMMIT has not reached the primary.
"""
CASES = [
    *((place, True) for place in PLACES),
    *((place, False) for place in ("nothing received", "not the commit received")),
]
"""Places, and whether the primary dies; else the standby is asked in its stead for a while."""
ASKED_FOR = 1.0
"""Seconds for which a standby that lags is there to be asked by those who do not give up."""


class Promotions:
    """Runs trials, one after another; each makes the standby primary, and needs another standby.

    Args:
        primary: the server that can write.
        make_standby: makes and starts a standby of a server.
        remove: removes a server.
        proxy: before the primary.
        callers: through the proxy; one process is enough.
        mode: the ``commit_check``.
    """

    def __init__(
        self,
        primary: EmbeddedServer,
        make_standby: Callable[[EmbeddedServer], EmbeddedServer],
        remove: Callable[[EmbeddedServer], object],
        proxy: FaultProxy,
        callers: Callers,
        mode: str,
    ) -> None:
        self._primary, self._make_standby, self._remove = primary, make_standby, remove
        self._proxy, self._callers, self._mode = proxy, callers, mode
        with operator_of(primary) as operator:
            for statement in Calls.schema(mode):
                operator.execute(statement)
            operator.execute("CREATE TABLE IF NOT EXISTS foreign_load (number int)")
        self._standby = make_standby(primary)

    def fail_over(self, place: str, *, threads: int = 2, aborting: bool = False) -> Trial:
        """Make as many calls as there are threads, and fail over while they commit.

        Args:
            place: one of ``PLACES``.
            threads: how many commit at the same time.
            aborting: the transactions that follow are rolled back instead of committed.
        """
        xids = self._commit(place, threads)
        self._primary.kill()
        self._proxy.cut()
        self._promote()
        with operator_of(self._primary) as operator:
            take_ids(operator, TRAP, beyond=xids, aborting=aborting)
            trapped = taken(operator, xids)
        self._proxy.forward()
        return self._judge(trapped)

    def ask_standby(self, place: str, *, threads: int = 2, aborting: bool = False) -> Trial:
        """Make the calls, and have the standby asked what became of them while the primary lives.

        Args:
            place: one of ``PLACES``.
            threads: how many commit at the same time.
            aborting: no matter here.
        """
        self._commit(place, threads)
        self._proxy.cut()
        self._proxy.retarget(self._standby.host, self._standby.port)
        self._proxy.forward()
        until = time.monotonic() + ASKED_FOR
        while not self._callers.ended() and time.monotonic() < until:
            time.sleep(0.01)
        self._proxy.retarget(self._primary.host, self._primary.port)
        self._proxy.cut()
        trial = self._judge(0)
        self._remove(self._superseded)
        return trial

    def close(self) -> None:
        """Remove the standby that no trial has used."""
        self._remove(self._standby)

    def _commit(self, place: str, threads: int) -> list[int]:
        """Have calls commit, cut off from the proxy, and return their ids."""
        begun = self._proxy.triggered()
        with operator_of(self._primary) as operator:
            self._catch_up(operator)
            if place == "nothing received":
                self._stop_receiving()
            self._proxy.fault_at_commit("stranded", times=threads, silence=60.0)
            self._callers.start("calls", mode=self._mode, threads=threads, calls=1, apart=True)
            wait_until(lambda: self._proxy.triggered() == begun + threads, timeout=90)
            pids = [hit.backend_pid for hit in self._proxy.hits()[begun:]]
            query = "SELECT backend_xid::text::int FROM pg_stat_activity WHERE pid = ANY (%s)"
            xids = [xid for (xid,) in operator.execute(query, [pids]) if xid is not None]
            if place != "nothing received":
                self._catch_up(operator)
            if place == "not the commit received":
                self._stop_receiving()
            if place != "commit never sent":
                self._proxy.release()
                query = "SELECT count(*) FROM done WHERE xmin::text::int = ANY (%s)"
                wait_until(partial(value, operator, f"SELECT ({query}) = {threads}", xids))
            if place == "all received":
                self._catch_up(operator)
        self._proxy.down()
        return xids

    def _judge(self, trapped: int) -> Trial:
        """Wait for the end of the calls, and make another standby."""
        calls = calls_of(self._callers.finish())
        rows, total = stored(self._primary)
        wrong = untruths(calls, {call.key: rows[call.key] for call in calls})
        if total != sum(rows.values()):
            wrong["counter"] = f"the counters are worth {total}, and {rows.total()} rows are there"
        self._superseded, self._standby = self._standby, self._make_standby(self._primary)
        return Trial(calls, wrong, trapped)

    def _catch_up(self, operator: psycopg.Connection[Any]) -> None:
        """Have the standby receive all that the primary has done up to now, committed or not."""
        # The new file begins with everything before it on disk.
        position = value(operator, "SELECT pg_switch_wal()::text")
        with operator_of(self._standby) as witness:
            query = f"SELECT pg_last_wal_replay_lsn() >= '{position}'::pg_lsn"
            wait_until(lambda: value(witness, query), timeout=90)

    def _stop_receiving(self) -> None:
        with operator_of(self._standby) as operator:
            operator.execute("ALTER SYSTEM SET primary_conninfo = ''")
            operator.execute("SELECT pg_reload_conf()")
            receivers = "SELECT count(*) FROM pg_stat_wal_receiver"
            wait_until(lambda: value(operator, receivers) == 0, timeout=90)

    def _promote(self) -> None:
        with operator_of(self._standby) as operator:
            assert value(operator, "SELECT pg_promote()")
        self._remove(self._primary)
        self._primary = self._standby
        self._proxy.retarget(self._primary.host, self._primary.port)


def operator_of(server: EmbeddedServer) -> psycopg.Connection[Any]:
    """Return a connection past the proxy."""
    return psycopg.connect(**server.parameters(), autocommit=True)
