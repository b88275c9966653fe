"""Clients that resend each request until it is answered, while everything on the way fails.

One proxy cuts requests and answers between clients and site, another messages between site and
server; workers and servers are killed, and a standby is promoted.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlencode

from embedded_postgres import free_port
from tests.proof.callers import ROOT
from tests.proof.crashes import value
from tests.proof.faults import Faults
from tests.proof.loads import Calls
from tests.proof.promotions import operator_of
from tests.proof.storm import crash, kill_backend
from tests.proof.verdict import stored
from tests.servers.fault_proxy import FaultProxy
from tests.sites.workers.running import Site, serving
from tests.support.threads import in_background
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from embedded_postgres import EmbeddedServer
    from tests.servers.postgresql import Servers

__all__ = ["Resent", "resend"]

CLIENTS = 12
PATIENCE = 6.0
"""Seconds for which a client waits for an answer before it sends its request again."""
EACH = 10
"""Faults at messages from one end of the server, or of a backend, to the next."""
GIVE_UP = 600.0
"""Seconds after which no answer is a failure of the proof."""


class Resent(NamedTuple):
    """What a run has come to."""

    wrong: list[str]
    """What was not done once, or not always answered the same; empty if all is well."""
    notes: Counter[str]
    """What was counted."""


@dataclass
class Request:
    """One payment, and what the client has been answered."""

    key: str = field(default_factory=lambda: str(uuid.uuid4()))
    answers: set[tuple[int, bytes]] = field(default_factory=set)


class Clients:
    """Threads that each send one request after another, and each until it is answered.

    Args:
        port: where the site is reached.
        number: how many requests there are in all.
        seed: of the times between them.
    """

    def __init__(self, port: int, number: int, seed: object) -> None:
        self.requests = [Request() for _ in range(number)]
        self.notes: Counter[str] = Counter()
        self._port, self._seed = port, seed
        self._todo = iter(self.requests)
        self._lock = threading.Lock()
        self._answered = 0
        self._threads = [
            threading.Thread(target=self._run, args=[number], daemon=True)
            for number in range(CLIENTS)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    @property
    def answered(self) -> int:
        """How many requests have been answered."""
        return self._answered

    @property
    def busy(self) -> bool:
        """Whether some are still to be answered."""
        return any(thread.is_alive() for thread in self._threads)

    def send(self, request: Request, port: int | None = None) -> bool:
        """Send it once; tell whether it was answered, by what is no error to be repeated."""
        link = http.client.HTTPConnection("127.0.0.1", port or self._port, timeout=PATIENCE)
        try:
            link.request(
                "POST",
                "/pay",
                urlencode({"payment": request.key}),
                {
                    "Content-Type": "application/x-www-form-urlencoded",
                    "Idempotency-Key": f'"{request.key}"',
                    "Connection": "close",
                },
            )
            response = link.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._note(type(error).__name__)
            return False
        finally:
            link.close()
        if response.status >= 500 or response.status == 409:
            self._note(f"answer {response.status}")
            return False
        self._note("replayed" if response.headers["Idempotency-Replayed"] else "first answers")
        with self._lock:
            request.answers.add((response.status, body))
        return True

    def _note(self, what: str) -> None:
        with self._lock:
            self.notes[what] += 1

    def _run(self, number: int) -> None:
        chance = random.Random(f"{self._seed} {number}")
        until = time.monotonic() + GIVE_UP
        while True:
            with self._lock:
                request = next(self._todo, None)
            if request is None:
                return
            time.sleep(chance.uniform(0.0, 0.2))
            while not self.send(request) and time.monotonic() < until:
                time.sleep(chance.uniform(0.0, 0.1))
            with self._lock:
                self._answered += 1
            if chance.random() < 0.25:
                # A client that has lost its notes sends it all the same.
                self.send(request)


def resend(servers: Servers, number: int, *, seed: object = 0, header: str | None = None) -> Resent:
    """Have so many requests answered, and judge by what the database holds.

    Args:
        servers: makes them.
        number: how many requests.
        seed: of the faults.
        header: where the site looks for keys; another one than the clients' shows that the proof
            can fail.
    """
    primary = servers.make()
    primary.start()
    with operator_of(primary) as operator:
        for statement in Calls.schema("xid"):
            operator.execute(statement)
    with (
        FaultProxy(primary.host, primary.port, listen=free_port()) as behind,
        site_of(primary, behind, header) as site,
        FaultProxy("127.0.0.1", site.port, listen=free_port()) as before,
    ):
        standby = servers.make(primary=primary)
        standby.start()
        before.delay(0.005)
        clients = Clients(before.port, number, seed)
        clients.start()
        notes = Counter[str]()
        with cutting(before, site, seed, notes):
            strike(clients, behind, primary, number // 2, seed, notes)
            promote(primary, standby, behind)
            notes["standby promoted"] += 1
            strike(clients, behind, standby, number, seed, notes)
            wait_until(lambda: not clients.busy, timeout=GIVE_UP + 2 * PATIENCE)
        notes["message lost"] = behind.triggered()
        found = re.findall(r"answer to COMMIT was lost; the transaction is (\w+)", site.log)
        notes.update(f"answer to COMMIT lost: {outcome}" for outcome in found)
        # Without any fault, once more.
        for request in clients.requests:
            clients.send(request, port=site.port)
    servers.remove(primary)
    wrong = verdict(clients.requests, standby)
    servers.remove(standby)
    return Resent(wrong, notes + clients.notes)


def verdict(requests: list[Request], server: EmbeddedServer) -> list[str]:
    """Return what was not done once, or not always answered the same."""
    rows, total = stored(server)
    wrong = []
    for request in requests:
        times = rows[request.key]
        if times != 1:
            wrong.append(f"{request.key} is there {times} times, answered {request.answers}")
        if len(request.answers) != 1 or any(status != 201 for status, _ in request.answers):
            wrong.append(f"{request.key} was answered {request.answers}")
    if len({body for request in requests for _, body in request.answers}) != len(requests):
        wrong.append("two requests were answered the same")
    if total != rows.total() or rows.keys() != {request.key for request in requests}:
        wrong.append(f"the counters are worth {total}, and {rows.total()} rows are there")
    return wrong


def strike(
    clients: Clients,
    proxy: FaultProxy,
    server: EmbeddedServer,
    number: int,
    seed: object,
    notes: Counter[str],
) -> None:
    """Let faults befall what passes between site and server until so many requests are answered."""
    chance = random.Random(f"{seed}")
    faults = Faults(proxy, server, seed)
    ends: dict[str, Callable[[], object]] = {
        "server killed": lambda: crash(server),
        "backend killed": lambda: kill_backend(server, chance),
        "server stopped": lambda: server.restart(chance.choice(["fast", "immediate"])),
    }
    turns = itertools.cycle(ends)
    # The first end comes with the first fault: a short run has one too.
    due = 1
    while clients.answered < number and clients.busy:
        if chance.random() < 0.1:
            faults.terminate()
            notes["backend terminated"] += 1
        else:
            faults.strike()
        if faults.befallen() >= due:
            due = faults.befallen() + EACH
            end = next(turns)
            ends[end]()
            notes[end] += 1
    proxy.disarm()
    proxy.release()
    proxy.abandon()


def promote(primary: EmbeddedServer, standby: EmbeddedServer, proxy: FaultProxy) -> None:
    """Promote the standby; it has received COMMITs whose answers nobody has."""
    proxy.fault_at_commit("swallowed", times=3, silence=60.0)
    time.sleep(0.3)
    proxy.disarm()
    # From here on nobody is answered by what the standby may not have.
    proxy.down()
    proxy.cut()
    with operator_of(primary) as operator:
        position = value(operator, "SELECT pg_switch_wal()::text")
    query = f"SELECT pg_last_wal_replay_lsn() >= '{position}'::pg_lsn"
    with operator_of(standby) as operator:
        wait_until(lambda: value(operator, query), timeout=90)
        primary.kill()
        proxy.abandon()
        assert value(operator, "SELECT pg_promote()")
    proxy.retarget(standby.host, standby.port)
    proxy.forward()


@contextlib.contextmanager
def cutting(proxy: FaultProxy, site: Site, seed: object, notes: Counter[str]) -> Iterator[None]:
    """Cut connections between clients and site, and kill workers, in the meantime."""
    done = threading.Event()

    def cut() -> None:
        chance = random.Random(f"{seed}")
        due = time.monotonic() + 2.0
        killed: set[str] = set()
        while not done.wait(chance.uniform(0.2, 1.2)):
            if chance.random() < 0.05:
                proxy.freeze()
                done.wait(0.1)
                proxy.forward()
            notes["cut between client and site"] += proxy.cut(reset=chance.random() < 0.5)
            if time.monotonic() > due:
                due = time.monotonic() + chance.uniform(2.0, 6.0)
                workers = re.findall(r"Booting worker with pid: (\d+)", site.log)
                worker = chance.choice([pid for pid in workers if pid not in killed])
                killed.add(worker)
                os.kill(int(worker), signal.SIGKILL)
                notes["worker killed"] += 1

    with in_background(cut, done):
        yield


@contextlib.contextmanager
def site_of(server: EmbeddedServer, proxy: FaultProxy, header: str | None) -> Iterator[Site]:
    """Run the site under gunicorn, and make its tables."""
    database = {
        "ENGINE": "django_pooled",
        **server.django_settings(),
        "PORT": proxy.port,
        "OPTIONS": {
            "pool": {
                "max_size": 6,
                "timeout": 10.0,
                "backoff": {"initial": 0.01, "maximum": 0.2, "jitter": True},
                "retry_budget": 0,
                "stats_dir": False,
            }
        },
    }
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PROOF_DATABASE": json.dumps(database), "PYTHONPATH": path}
    env.pop("DJANGO_SETTINGS_MODULE", None)
    if header is not None:
        env["PROOF_HEADER"] = header
    command = ["gunicorn", "--workers=2", "--threads=6", "--bind=127.0.0.1:0", "--timeout=120"]
    command += ["tests.proof.payments:application"]
    migrate = [sys.executable, "-m", "tests.proof.payments"]
    subprocess.run(migrate, cwd=ROOT, env=env, check=True, timeout=60)
    with serving(command, env) as site:
        yield site
