"""A planned change of server without a failed request: pause, switch, wait, drain, resume."""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import time
from time import monotonic
from typing import TYPE_CHECKING

from django.db import connections

from django_pooled.poolstats.findings.finding import Level
from django_pooled.poolstats.formatting import brief, duration, many
from django_pooled.stats.orders import REFUSED

from .address import Address
from .orders import Refused, check_length, require_processes
from .results import Result, busy_words, failures, waiters

if TYPE_CHECKING:
    from .address import Server
    from .console import Console
    from .operator import Operator, Reply

__all__ = ["Switchover"]

LEASE = 5.0
"""Seconds for which each order pauses. The command renews it; without it, all resume after that."""

STEP = 0.05
"""Seconds between two looks."""

SHARE, LONGEST = 0.8, 60.0
"""Of the shortest ``timeout``, what a switchover may take; and its cap in seconds."""

READY = 3.0
"""Seconds that the pools have to replace their connections, before they resume in any case."""

FIRST_LOOK = 3.0
"""Seconds that a server has to answer before anything is begun."""


class _Failed(Exception):
    """The switchover is given up; the message says why."""


class Switchover:
    """Pauses the pools of a site while its server is changed.

    The pools are paused for a few seconds at a time, again and again: if this command is killed or
    stopped, they resume by themselves. Whatever else ends it has them resume at once.

    Args:
        operator: The processes.
        console: Where to write.
        command: What changes the server; None where the operator does so meanwhile.
        seconds: How long the pause may last; None for most of the shortest ``timeout``.
        wait: Seconds to wait until nothing is in use.
        beyond_timeout: Whether the pause may be longer than checkouts wait.
        ignore_silent: Whether to go on though a process does not answer, or is too old.
        ignore_idle: Whether to go on though threads keep connections that they do not use.
    """

    def __init__(
        self,
        operator: Operator,
        console: Console,
        *,
        command: str | None = None,
        seconds: float | None = None,
        wait: float = 5.0,
        beyond_timeout: bool = False,
        ignore_silent: bool = False,
        ignore_idle: bool = False,
    ) -> None:
        self._operator = operator
        self._console = console
        self._command = shlex.split(command) if command else None
        self._seconds = seconds
        self._wait = wait
        self._beyond_timeout = beyond_timeout
        self._ignore_silent = ignore_silent
        self._ignore_idle = ignore_idle
        self._busy: set[tuple[str, int]] = set()  # pool and backend of what was used in the pause
        self._kept = 0  # connections that threads keep, and have not used
        self._paused: set[str] = set()  # ids of the pools that are known to be paused
        self._heard: dict[int, float] = {}  # by pid: when each process has answered last
        self._paused_at = 0.0
        self._until = 0.0
        self._addresses = [Address(alias) for alias in operator.aliases]
        self._before: dict[str, Server] = {}

    def run(self) -> int:
        """Do all of it; return the exit code.

        Raises:
            Refused: Nothing was begun.
        """
        try:
            self._prepare()
            return self._switch()
        finally:
            for address in self._addresses:
                address.close()

    def _prepare(self) -> None:
        reply = self._operator.look()
        rows = require_processes(reply)
        if not self._ignore_silent and (found := failures(reply)):
            self._console.results(found)
            raise Refused(
                "Nothing was done, since these processes can't be paused: their requests would "
                "fail. Mend that, or say --ignore-silent to let them fail."
            )
        longest = min(row.pool.timeout for row in rows) * SHARE
        seconds = self._seconds if self._seconds is not None else min(longest, LONGEST)
        check_length(rows, seconds, beyond_timeout=self._beyond_timeout)
        self._seconds = seconds
        for address in self._addresses:
            server = address.look(FIRST_LOOK)
            if server is None:
                raise Refused(f'The server of "{address.alias}" does not answer: {address.error}')
            if not (server.writable or _is_replica(address.alias)):
                raise Refused(
                    f'The server of "{address.alias}" is read-only already. If the switchover is '
                    "under way, the pools find the new server by themselves."
                )
            self._before[address.alias] = server

    def _switch(self) -> int:
        console = self._console
        self._paused_at = monotonic()
        self._until = self._paused_at + (self._seconds or 0.0)
        process: subprocess.Popen[bytes] | None = None
        try:
            reply = self._wait_until_unused(self._pause())
            pools = {row.pool.id for row in reply.rows}
            unused = "nothing else is" if self._kept else "nothing is"
            console.say(f"Paused {many(len(pools), 'pool')}; {unused} in use.")
            if self._command is not None:
                console.say(f"Running {shlex.join(self._command)}")
                process = self._started()
            else:
                console.say("Switch the server over now.")
            self._wait_until_writable(process)
            console.say(f"{self._servers()}: the address can be written.")
            self._drain()
        except _Failed as failed:
            self._resume()
            console.say(f"critical  {failed}")
            console.say("All pools have resumed. Their connections were not replaced.")
            return 2
        except BaseException:
            self._resume()
            raise
        finally:
            if process is not None and process.poll() is None:
                console.say(f"The command goes on, as process {process.pid}.")
        found = self._resume()
        console.say(f"Resumed: requests have waited for {duration(self._lasted)} at most.")
        console.results(found)
        return 1 if found else 0

    # The steps

    def _pause(self) -> Reply:
        """Pause all pools, new ones too, for a few seconds more.

        Raises:
            _Failed: One that was paused has resumed, or is paused by another operator.
        """
        reply = self._operator.give("pause", seconds=LEASE)
        for row in reply.rows:
            answer = reply.answer(row)
            who = f"{row.process.pid} {row.process.command}"
            if answer is None:
                continue
            if answer.outcome == REFUSED:
                raise _Failed(f"{who} is not paused: {answer.sentence}.")
            if row.pool.id in self._paused and answer.outcome == "paused":
                raise _Failed(f"{who} had resumed meanwhile: another operator has ended the pause.")
            self._paused.add(row.pool.id)
        now = monotonic()
        self._heard.update((report.pid, now) for report in reply.collection.reports)
        for pid in reply.silent:
            # A busy host lets an answer come late.
            if not self._ignore_silent and now - self._heard.get(pid, now) > LEASE * SHARE:
                raise _Failed(f"Process {pid} does not answer any more: its pools resume.")
        return reply

    def _wait_until_unused(self, reply: Reply) -> Reply:
        until = min(monotonic() + self._wait, self._until)
        while (lent := sum(row.pool.lent for row in reply.rows)) or self._is_unheard(reply):
            kept = self._kept_idle(reply)
            if monotonic() >= until:
                self._kept = kept
                if self._ignore_idle and kept == lent and not self._is_unheard(reply):
                    self._console.say(f"Kept, and not used: {busy_words(reply.rows)}.")
                    break
                silent = f"; process {reply.silent[0]} does not answer" if reply.silent else ""
                hint = ", or --ignore-idle: they are kept without a use" if kept == lent else ""
                raise _Failed(
                    f"Still {busy_words(reply.rows)}{silent}, {duration(self._wait)} after the "
                    f"pause began: end what holds them, or say a longer --wait{hint}. The server "
                    "was not touched."
                )
            self._console.progress(f"pausing: {busy_words(reply.rows)}; {waiters(reply.rows)}")
            time.sleep(STEP)
            reply = self._pause()
        return reply

    def _kept_idle(self, reply: Reply) -> int:
        """Count the connections in use on which nothing was asked since the pause began."""
        used = {
            (row.pool.id, connection["backend_pid"]): connection["status"] == "idle"
            for row in reply.rows
            for connection in row.pool.connections
            if connection["state"] != "idle"
        }
        self._busy.update(key for key, is_idle in used.items() if not is_idle)
        return len(used.keys() - self._busy)

    def _is_unheard(self, reply: Reply) -> bool:
        """Whether a process did not say what it has in use."""
        return bool(reply.silent) and not self._ignore_silent

    def _started(self) -> subprocess.Popen[bytes]:
        assert self._command is not None
        try:
            return subprocess.Popen(self._command, stdin=subprocess.DEVNULL)
        except OSError as error:
            raise _Failed(f"{self._command[0]} can't be run: {error.strerror}.") from None

    def _wait_until_writable(self, process: subprocess.Popen[bytes] | None) -> None:
        missing = list(self._addresses)
        while missing:
            reply = self._pause()
            if monotonic() >= self._until:
                raise _Failed(self._too_late(missing[0], process))
            if process is not None and process.poll():
                raise _Failed(f"The command ended with {process.returncode}.")
            lasts = duration(monotonic() - self._paused_at)
            self._console.progress(f"paused for {lasts}; {waiters(reply.rows)}")
            if process is not None and process.returncode is None:
                # While it runs, the address may lead here and there.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(STEP)
                continue
            missing = [address for address in missing if not self._is_switched(address)]

    def _is_switched(self, address: Address) -> bool:
        server = address.look(STEP)
        if server is None or not (server.writable or _is_replica(address.alias)):
            return False
        if server.is_same(self._before[address.alias]):
            address.error = "the address leads to the same server as before"
            return False
        self._before[address.alias] = server
        return True

    def _too_late(self, address: Address, process: subprocess.Popen[bytes] | None) -> str:
        lasted = duration(monotonic() - self._paused_at)
        if process is not None and process.returncode is None:
            return f"The command has not ended, and the pause has lasted {lasted}."
        what = f": {brief(address.error)}" if address.error else ""
        return f'The address of "{address.alias}" can\'t be written after {lasted}{what}.'

    def _drain(self) -> None:
        reply = self._operator.give("drain")
        until = monotonic() + READY
        # What is kept comes back later.
        while monotonic() < until and self._kept < sum(
            row.pool.to_replace or 0 for row in reply.rows
        ):
            time.sleep(STEP)
            reply = self._pause()

    def _resume(self) -> list[Result]:
        reply = self._operator.give("resume")
        self._lasted = monotonic() - self._paused_at
        found = failures(reply)
        for row in reply.rows:
            answer = reply.answer(row)
            if answer is not None and answer.outcome == REFUSED:
                who = f"{row.process.pid} {row.process.command}"
                found.append(Result(Level.WARNING, who, answer.sentence))
        return found

    def _servers(self) -> str:
        return ", ".join(
            f'"{address.alias}" is {self._before[address.alias].words}'
            for address in self._addresses
        )


def _is_replica(alias: str) -> bool:
    pool = connections.settings[alias]["OPTIONS"].get("pool")
    return isinstance(pool, dict) and pool.get("read_only") is True
