"""Requests that fail while every database session is ended again and again, by engine.

    python benchmarks/between_statements.py --quick

One gunicorn with threads for each engine, all at once on one server. Nothing is decorated. A page
makes six queries and waits between them, as views do that compute or call another service; one
request in four writes in an atomic block instead. The exit code is 0 if ours failed less than a
fifth as often as Django's engine, else 1.

``--package NAME=FOLDER`` adds a column for another checkout of this package.
"""

from __future__ import annotations

import contextlib
import http.client
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _site import set_up, threaded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from django.http import HttpRequest, HttpResponse

QUERIES, WAIT = 6, 0.02
"""Of a page, and the seconds between two of them."""
WRITES = 4
"""One request in so many writes."""
BAR = 0.2
"""Failures of ours that are allowed for each of Django's engine."""

NATIVE = {"ENGINE": "django.db.backends.postgresql"}
PERSISTENT = {"CONN_MAX_AGE": 60, "CONN_HEALTH_CHECKS": True}
POOL: dict[str, Any] = {"OPTIONS": {"pool": {"min_size": 1, "max_size": 10}}}
ENGINES: dict[str, dict[str, Any]] = {
    "Django's engine": {**NATIVE, **PERSISTENT},
    "its pool": {**NATIVE, **POOL},
    "django_pooled": {"ENGINE": "django_pooled", **POOL},
}


# The site, in each gunicorn.


def page(request: HttpRequest) -> HttpResponse:
    """Query, and do something else in between."""
    from django.db import connection
    from django.http import HttpResponse

    for number in range(QUERIES):
        if number:
            time.sleep(WAIT)
        with connection.cursor() as cursor:
            cursor.execute("SELECT n FROM counter")
            cursor.fetchone()
    return HttpResponse("ok")


def write(request: HttpRequest) -> HttpResponse:
    """Write in a transaction."""
    from django.db import connection
    from django.db.transaction import atomic
    from django.http import HttpResponse

    with atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT n FROM counter")
        cursor.execute("INSERT INTO written VALUES (1)")
    return HttpResponse("ok")


def site() -> Any:
    """Return the WSGI application."""
    from django.core.wsgi import get_wsgi_application
    from django.urls import path

    set_up(__name__, ["django_pooled.middleware.DatabaseUnavailableMiddleware"])
    globals()["urlpatterns"] = [path("page/", page), path("write/", write)]
    return get_wsgi_application()


# Its clients.


class Clients:
    """Threads that request pages of one site, and count the answers.

    Args:
        port: the site's.
        count: how many.
    """

    def __init__(self, port: int, count: int) -> None:
        self.answers: Counter[tuple[str, int]] = Counter()
        self._port = port
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]
        self._over = threading.Event()

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End, with answers to all requests."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        seen: Counter[tuple[str, int]] = Counter()
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        number = 0
        while not self._over.is_set():
            number += 1
            kind = "page" if number % WRITES else "write"
            try:
                connection.request("GET", f"/{kind}/")
                answer = connection.getresponse()
                answer.read()
                status = answer.status
            except (OSError, http.client.HTTPException):
                connection.close()
                status = 0
            seen[kind, status] += 1
        self.answers.update(seen)


def table(columns: Sequence[tuple[str, Counter[tuple[str, int]]]]) -> None:
    """Print the answers of each engine."""
    print(
        "\n| engine | requests | failed | of pages | of writes | share |\n|---|---|---|---|---|---|"
    )
    for name, answers in columns:
        failed = {kind: failures(answers, kind) for kind in ("page", "write")}
        total, lost = sum(answers.values()), sum(failed.values())
        print(
            f"| {name} | {total:,} | {lost} | {failed['page']} | {failed['write']} "
            f"| {lost / total:.2%} |"
        )


def failures(answers: Counter[tuple[str, int]], kind: str) -> int:
    """Count the answers of one kind that are not 200."""
    return sum(n for (which, status), n in answers.items() if which == kind and status != 200)


def main() -> int:
    """Run it and print the table; returns the exit code."""
    import psycopg
    from _common import arguments, server

    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two kills")
    parser.add_argument("--clients", type=int, default=8, help="of each engine; also its threads")
    parser.add_argument("--package", action="append", default=[], metavar="NAME=FOLDER")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.seconds = 20.0
    sites: list[tuple[str, dict[str, Any], str | None]] = [
        (name, settings, None) for name, settings in ENGINES.items()
    ]
    for package in chosen.package:
        name, _, folder = package.partition("=")
        sites.append((name, ENGINES["django_pooled"], str(Path(folder).resolve())))
    with contextlib.ExitStack() as stack:
        one = stack.enter_context(server(max_connections="200"))
        admin = stack.enter_context(psycopg.connect(**one.parameters(), autocommit=True))
        admin.execute("CREATE TABLE counter AS SELECT 1 AS n; CREATE TABLE written (n int)")
        found = []
        for name, settings, folder in sites:
            database = {**one.django_settings(), **settings}
            port = stack.enter_context(
                threaded(
                    "between_statements",
                    database,
                    chosen.clients,
                    first="/write/",
                    package=folder,
                )
            )
            found.append((name, Clients(port, chosen.clients)))
        for _, clients in found:
            clients.start()
        ended, until = 0, time.monotonic() + chosen.seconds
        while time.monotonic() < until:
            time.sleep(chosen.every)
            ended += admin.execute(
                "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity "
                "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            ).fetchall()[0][0]
        for _, clients in found:
            clients.stop()
    print(f"{chosen.seconds:g} s, {chosen.clients} clients each, {ended} sessions ended, in all")
    columns = [(name, clients.answers) for name, clients in found]
    table(columns)
    lost = {
        name: sum(failures(answers, kind) for kind in ("page", "write"))
        for name, answers in columns
    }
    share = lost["django_pooled"] / max(1, lost["Django's engine"])
    print(f"\nFailures of django_pooled for each of Django's engine: {share:.2f}")
    return 1 if share >= BAR else 0


if __name__ == "__main__":
    sys.exit(main())
