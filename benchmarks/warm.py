"""Connects that requests wait for as connections reach their max_lifetime, by engine.

    python benchmarks/warm.py --quick

One gunicorn with threads for each engine, all at once on one server, which is 2 ms away. Requests
come at a steady rate, whether or not earlier ones were answered, and latencies count from the
moment at which a request was due. A request waited if no connection was idle as it came, and a
connect was on its path if it waited and was the first to use the connection that it got: a machine
that is busy makes neither. The first seconds, in which pools open, do not count. The exit code is 0
if no request of ours failed or had a connect on its path, else 1.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from _site import set_up, threaded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from django.http import HttpRequest, HttpResponse

# Ours comes last.
ENGINES: dict[str, dict[str, Any]] = {
    "native pool": {"ENGINE": "django.db.backends.postgresql"},
    "django_pooled": {"ENGINE": "django_pooled"},
}
AWAY = 0.001
"""Seconds by which the proxy delays everything, each way."""
CLIENTS = 8
BEGINNING = 5.0
"""Seconds that do not count."""


# The site, in each gunicorn.


_used: set[tuple[int, float]] = set()
"""The sessions that were used, by process id and beginning."""


def page(request: HttpRequest) -> HttpResponse:
    """Query once; tell whether it waited for a connection, and whether that was new."""
    from django.db import connection
    from django.http import HttpResponse

    pool: Any = connection.pool
    is_ours = hasattr(pool, "gauges")
    idle = pool.gauges().idle if is_ours else pool.get_stats()["pool_available"]
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pid, extract(epoch FROM backend_start)::float8, pg_sleep(%s) "
            "FROM pg_stat_get_activity(pg_backend_pid())",
            [float(request.GET["work"])],
        )
        (pid, since, _) = cursor.fetchone()
    is_new = (pid, since) not in _used
    _used.add((pid, since))
    return HttpResponse(json.dumps([idle == 0, is_new]))


def site() -> Any:
    """Return the WSGI application."""
    from django.core.wsgi import get_wsgi_application
    from django.urls import path

    set_up(__name__)
    globals()["urlpatterns"] = [path("", page)]
    return get_wsgi_application()


# Its clients.


@dataclass
class Answers:
    """What the clients of one engine have seen."""

    latencies: list[float] = field(default_factory=list)
    waits: int = 0
    connects: int = 0
    failed: int = 0


class Clients:
    """Threads that send the requests of one site when they are due.

    Args:
        port: the site's.
        rate: requests each second.
        seconds: how long.
        work: seconds of each query.
    """

    def __init__(self, port: int, rate: float, seconds: float, work: float) -> None:
        self.answers = Answers()
        self._port, self._rate, self._work = port, rate, work
        self._began = time.perf_counter()
        self._numbers = iter(range(int(rate * seconds)))
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait for the last answer."""
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        while True:
            with self._lock:
                number = next(self._numbers, None)
            if number is None:
                return
            due = number / self._rate
            time.sleep(max(0.0, self._began + due - time.perf_counter()))
            try:
                connection.request("GET", f"/?work={self._work}")
                answer = connection.getresponse()
                found = json.loads(answer.read()) if answer.status == 200 else None
            except (OSError, http.client.HTTPException, ValueError):
                connection.close()
                found = None
            latency = time.perf_counter() - self._began - due
            if due >= BEGINNING:
                self._note(found, latency)

    def _note(self, found: list[Any] | None, latency: float) -> None:
        with self._lock:
            self.answers.latencies.append(latency)
            if found is None:
                self.answers.failed += 1
            else:
                self.answers.waits += found[0]
                self.answers.connects += all(found)


def table(columns: Sequence[tuple[str, Answers, int]]) -> None:
    """Print the answers of each engine, and how many connects the server has seen."""
    print(
        "\n| engine | requests | failed | connects | on a request's path "
        "| requests that waited | p50 | p99 | p99.9 | slowest |"
        f"\n|{'---|' * 10}"
    )
    for name, answers, connects in columns:
        latencies = sorted(answers.latencies)
        shown = [latencies[int(share * (len(latencies) - 1))] for share in (0.5, 0.99, 0.999, 1)]
        print(
            f"| {name} | {len(latencies):,} | {answers.failed} | {connects} | {answers.connects} "
            f"| {answers.waits} | {' | '.join(f'{latency * 1e3:.1f} ms' for latency in shown)} |"
        )


def main() -> int:
    """Run it and print the table; returns the exit code."""
    from _common import FaultProxy, arguments, free_port, server

    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--rate", type=float, default=50.0, help="requests each second")
    parser.add_argument("--lifetime", type=float, default=60.0, help="max_lifetime, in seconds")
    parser.add_argument("--threads", type=int, default=4, help="of each gunicorn")
    parser.add_argument("--min-size", type=int, default=4)
    parser.add_argument("--max-size", type=int, default=5)
    parser.add_argument("--work", type=float, default=0.005, help="seconds of each query")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.seconds, chosen.lifetime = 45.0, 10.0
    pool = {
        "min_size": chosen.min_size,
        "max_size": chosen.max_size,
        "max_lifetime": chosen.lifetime,
    }
    with contextlib.ExitStack() as stack:
        one = stack.enter_context(server())
        running = []
        for name, settings in ENGINES.items():
            proxy = stack.enter_context(FaultProxy(one.host, one.port, listen=free_port()))
            proxy.delay(AWAY)
            more = {"open_at_start": True} if name == "django_pooled" else {}
            options = {"OPTIONS": {"pool": {**pool, **more}}}
            database = {**one.django_settings(), **settings, **options, "PORT": proxy.port}
            port = stack.enter_context(
                threaded(
                    "warm", database, chosen.threads, first="/?work=0", options=["--keep-alive=60"]
                )
            )
            running.append((name, proxy, port))
        among = [Clients(port, chosen.rate, chosen.seconds, chosen.work) for _, _, port in running]
        for clients in among:
            clients.join()
        columns = [
            (name, clients.answers, len(proxy.connects()))
            for (name, proxy, _), clients in zip(running, among, strict=True)
        ]
    print(
        f"{chosen.seconds:g} s, {chosen.rate:g} requests a second, {chosen.threads} threads, "
        f"{chosen.work * 1e3:g} ms each, max_lifetime {chosen.lifetime:g}, min_size "
        f"{chosen.min_size}, max_size {chosen.max_size}"
    )
    table(columns)
    (_, ours, _) = columns[-1]
    return 1 if ours.failed or ours.connects else 0


if __name__ == "__main__":
    sys.exit(main())
