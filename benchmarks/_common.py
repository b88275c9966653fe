"""What the benchmarks share: the engines side by side, a server, and a proxy for each."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

BENCHMARKS = Path(__file__).resolve().parent
ROOT = BENCHMARKS.parent
PYTHONPATH = os.pathsep.join([str(ROOT), str(BENCHMARKS), os.environ.get("PYTHONPATH", "")])
sys.path.insert(0, str(ROOT))

from _worker import Request  # noqa: E402

from embedded_postgres import EmbeddedServer, free_port  # noqa: E402
from tests.servers.fault_proxy import FaultProxy  # noqa: E402
from tests.support.commanded import CommandedProcess  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

__all__ = [
    "BENCHMARKS",
    "ENGINES",
    "PYTHONPATH",
    "ROOT",
    "EmbeddedServer",
    "Engine",
    "FaultProxy",
    "Worker",
    "arguments",
    "at_once",
    "connections_to",
    "first_accepted",
    "proxies",
    "requests",
    "server",
    "started",
    "temporary_folder",
    "workers",
]


@dataclass(frozen=True)
class Engine:
    """One column of the tables."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)


ENGINES = (
    Engine("native", {"ENGINE": "django.db.backends.postgresql"}),
    Engine(
        "native, checks",
        {"ENGINE": "django.db.backends.postgresql", "CONN_HEALTH_CHECKS": True},
    ),
    Engine("django_pooled", {"ENGINE": "django_pooled"}),
)


def environment(database: Mapping[str, Any], **more: str) -> dict[str, str]:
    """Return what a process finds in its environment that works with such a database.

    It keeps compiled bytecode whatever is set here, as that of an installed package is kept.
    """
    inherited = {name: os.environ[name] for name in os.environ if name != "PYTHONDONTWRITEBYTECODE"}
    ours = {"BENCHMARK_DATABASE": json.dumps(database), "PYTHONPATH": PYTHONPATH}
    return {**inherited, **ours, **more}


class Worker(CommandedProcess):
    """The process that one engine works in; see ``_worker.Commands`` for what it can be told.

    Args:
        engine: its column.
        database: its ``DATABASES["default"]``, but for what the engine's own settings are.
        program: what to run, if not ``_worker.py``: a module that obeys as that does.
        more: what else it finds in its environment.
    """

    def __init__(
        self,
        engine: Engine,
        database: Mapping[str, Any],
        program: str = "_worker",
        **more: str,
    ) -> None:
        super().__init__(engine.name, program, environment({**engine.settings, **database}, **more))

    def hold(self, connections: int) -> None:
        """Have that many connections opened, and leave them idle."""
        if not self.call("hold", connections=connections, timeout=20.0):
            raise RuntimeError(f"{self.name} has no {connections} connections")


@contextlib.contextmanager
def started(databases: Iterable[tuple[Engine, Mapping[str, Any]]]) -> Iterator[list[Worker]]:
    """Start a worker for each engine and its database, and end them all."""
    with contextlib.ExitStack() as stack:
        made = []
        for engine, database in databases:
            made.append(Worker(engine, database))
            stack.callback(made[-1].close)
        yield made


@contextlib.contextmanager
def workers(
    targets: EmbeddedServer | Sequence[EmbeddedServer | FaultProxy],
    of: EmbeddedServer,
    pool: Mapping[str, Any],
    options: Mapping[str, Any] | None = None,
    engines: Sequence[Engine] = ENGINES,
    **settings: Any,
) -> Iterator[list[Worker]]:
    """Start a worker for each engine, all with the same options.

    Args:
        targets: what they connect to: the server, or a proxy for each.
        of: the server whose database it is.
        pool: ``OPTIONS["pool"]``; where it says nothing else, of one connection to ten.
        options: further ``OPTIONS``.
        engines: which.
        settings: what else differs from the server's own entry for ``DATABASES``.
    """
    if isinstance(targets, EmbeddedServer):
        targets = [targets] * len(engines)
    # psycopg_pool's own defaults are four connections, never more.
    pool = {"min_size": 1, "max_size": 10, **pool}
    database = {**of.django_settings(), **settings, "OPTIONS": {**(options or {}), "pool": pool}}
    with started(
        (engine, {**database, "PORT": target.port})
        for engine, target in zip(engines, targets, strict=True)
    ) as made:
        yield made


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a folder that a server's user can reach, and remove it."""
    is_root = sys.platform != "win32" and os.geteuid() == 0
    folder = Path(tempfile.mkdtemp(prefix="benchmark-", dir="/tmp" if is_root else None))
    # As root, PostgreSQL runs as another user, who has to pass through.
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def server(**settings: str) -> Iterator[EmbeddedServer]:
    """Run a server of its own in a temporary folder, and remove it."""
    with (
        temporary_folder() as folder,
        EmbeddedServer(folder / "server", durable=False, settings=settings) as one,
    ):
        yield one


@contextlib.contextmanager
def proxies(of: EmbeddedServer) -> Iterator[list[FaultProxy]]:
    """Start a proxy in front of the server for each engine."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(FaultProxy(of.host, of.port, listen=free_port())) for _ in ENGINES
        ]


def first_accepted(of: EmbeddedServer, start: Callable[[], object]) -> float:
    """Start the server, and return when the first connect began that it accepted.

    The prober belongs to no engine, and knocks every 2 ms.
    """
    starter = threading.Thread(target=start)
    starter.start()
    while True:
        began = time.monotonic()
        try:
            psycopg.connect(**of.parameters(), connect_timeout=5).close()
        except psycopg.OperationalError:
            if not starter.is_alive() and not of.running:
                raise
            time.sleep(0.002)
        else:
            starter.join()
            return began


def at_once(among: Sequence[Worker], command: str, **arguments: Any) -> list[Any]:
    """Give all workers the same command, side by side; returns the answers in their order."""
    with ThreadPoolExecutor(len(among)) as executor:
        return list(executor.map(lambda worker: worker.call(command, **arguments), among))


def connections_to(port: int) -> int:
    """Return how many connections to that port are open or being opened on this host (Linux).

    https://www.kernel.org/doc/html/latest/networking/proc_net_tcp.html
    """
    count = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, _, remote, state, *_ = line.split()
        count += int(remote.rpartition(":")[2], 16) == port and state in ("01", "02")
    return count


def requests(answer: Sequence[Sequence[Any]]) -> list[Request]:
    """Return a worker's list of requests, oldest answer first."""
    return sorted((Request(*one) for one in answer), key=lambda request: request.done)


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser that has what all benchmarks have."""
    parser = argparse.ArgumentParser(
        description=(doc or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="a short run, to see that it works")
    return parser
