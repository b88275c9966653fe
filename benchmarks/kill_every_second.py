"""Votes under load while every database session is ended once a second; counts what got lost.

Run it with the interpreter that has django_pooled and its extra "example" installed:

    python benchmarks/kill_every_second.py --seconds 30

It starts the example with a PostgreSQL of its own in a temporary folder, lets clients in another
process load the page and vote over kept-alive connections, and has pg_terminate_backend() end
all of their sessions again and again. A client sends the same ballot until it is acknowledged.
The exit code is 0 if no request failed and the votes acknowledged are those in the table and in
the tallies, else 1.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import psycopg

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.queues import SimpleQueue

ROOT = Path(__file__).resolve().parent.parent
MANAGE = ROOT / "example_project" / "manage.py"
FIELD = re.compile(r'name="(csrfmiddlewaretoken|token)" value="([^"]+)"')
GIVE_UP = 60.0
"""Seconds after the end in which a ballot still has to be acknowledged."""


@dataclass
class Tallied:
    """What the clients saw."""

    statuses: Counter[str] = field(default_factory=Counter)
    """Answers by method and status, or by the error that came instead of an answer."""
    failures: int = 0
    """Requests that got no answer, or none of 200."""
    pages: list[float] = field(default_factory=list)
    votes: list[float] = field(default_factory=list)
    """Seconds that each request took."""
    acknowledged: dict[str, str] = field(default_factory=dict)
    """Candidate by token."""
    counted: Counter[str] = field(default_factory=Counter)
    """How often each token was said to be counted just now."""
    unacknowledged: set[str] = field(default_factory=set)

    def add(self, other: Tallied) -> None:
        self.statuses += other.statuses
        self.failures += other.failures
        self.pages += other.pages
        self.votes += other.votes
        self.acknowledged |= other.acknowledged
        self.counted += other.counted
        self.unacknowledged |= other.unacknowledged


class Client:
    """One visitor who loads the page and votes, over and over."""

    def __init__(self, port: int) -> None:
        self.seen = Tallied()
        self.cookie = ""
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def run(self, until: float) -> Tallied:
        """Vote until that monotonic instant."""
        while time.monotonic() < until:
            page = self.request("GET", "/", self.seen.pages)
            if page is None:
                continue
            ballot = dict(FIELD.findall(page.decode()))
            ballot["candidate"] = random.choice(["tabs", "spaces"])
            self.cast(ballot, until + GIVE_UP)
        self.connection.close()
        return self.seen

    def cast(self, ballot: dict[str, str], until: float) -> None:
        token = ballot["token"]
        self.seen.unacknowledged.add(token)
        while time.monotonic() < until:
            answer = self.request("POST", "/vote/", self.seen.votes, urlencode(ballot))
            if answer is not None:
                receipt = json.loads(answer)
                self.seen.unacknowledged.discard(token)
                self.seen.acknowledged[token] = receipt["candidate"]
                self.seen.counted[token] += receipt["counted"]
                return
            time.sleep(0.1)

    def request(
        self, method: str, path: str, times: list[float], body: str | None = None
    ) -> bytes | None:
        """Return the body of an answer with status 200; anything else is a failure."""
        headers = {"Cookie": self.cookie}
        if body is not None:
            headers["Accept"] = "application/json"
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        began = time.monotonic()
        try:
            self.connection.request(method, path, body, headers)
            response = self.connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            self.connection.close()
            self.seen.statuses[f"{method} {type(error).__name__}"] += 1
            self.seen.failures += 1
            return None
        times.append(time.monotonic() - began)
        if cookie := response.getheader("Set-Cookie"):
            self.cookie = cookie.partition(";")[0]
        self.seen.statuses[f"{method} {response.status}"] += 1
        if response.status != 200:
            self.seen.failures += 1
            return None
        return content


def load(port: int, clients: int, seconds: float, results: SimpleQueue[Tallied]) -> None:
    """Run the clients, each in a thread; the body of the load's own process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    until = time.monotonic() + seconds
    voters = [Client(port) for _ in range(clients)]
    threads = [threading.Thread(target=voter.run, args=(until,)) for voter in voters]
    for thread in threads:
        thread.start()
    total = Tallied()
    for voter, thread in zip(voters, threads, strict=True):
        thread.join()
        total.add(voter.seen)
    results.put(total)


@contextlib.contextmanager
def example(workers: int, threads: int) -> Iterator[tuple[int, dict[str, str]]]:
    """Run the example in a temporary folder; yields its port and environment."""
    folder = Path(tempfile.mkdtemp(prefix="kill-every-second-"))
    # As root, PostgreSQL runs as another user, who has to pass through.
    folder.chmod(0o711)
    environment = {name: os.environ[name] for name in os.environ if name != "DATABASE_URL"}
    environment["EXAMPLE_FOLDER"] = str(folder / "kept")
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    )
    command = [sys.executable, str(MANAGE), "serve", "--port=0"]
    command += [f"--workers={workers}", f"--threads={threads}"]
    with (folder / "output").open("w+") as output:
        serve = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        try:
            while not (found := re.search(r"http://\S+:(\d+)/", _text(folder / "output"))):
                if serve.poll() is not None:
                    sys.exit(_text(folder / "output"))
                time.sleep(0.1)
            yield int(found[1]), environment
        finally:
            serve.send_signal(signal.SIGINT)
            serve.wait()
            print(_last_lines(_text(folder / "output").partition("Ctrl-C")[2]))
            shutil.rmtree(folder, ignore_errors=True)


def kill_backends(url: str, process: multiprocessing.process.BaseProcess, every: float) -> int:
    """End every client's session but our own at each interval; return how many were ended."""
    ended = 0
    with psycopg.connect(url, autocommit=True) as operator:
        while process.is_alive():
            process.join(every)
            ended += operator.execute(
                "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity "
                "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            ).fetchall()[0][0]
    return ended


def discrepancies(url: str, seen: Tallied) -> Iterator[str]:
    """Compare what was acknowledged with the rows and the tallies."""
    with psycopg.connect(url) as connection:
        rows = connection.execute("SELECT token::text, candidate FROM votes_vote").fetchall()
        tallies: dict[str, int] = dict(
            connection.execute("SELECT candidate, count FROM votes_tally").fetchall()
        )
    print(f"{'votes acknowledged':32}{len(seen.acknowledged):10}")
    print(f"{'rows':32}{len(rows):10}")
    print(f"{'sum of the tallies':32}{sum(tallies.values()):10}")
    stored: dict[str, str] = dict(rows)
    if lost := seen.acknowledged.keys() - stored.keys():
        yield f"{len(lost)} acknowledged votes have no row"
    if extra := stored.keys() - seen.acknowledged.keys():
        yield f"{len(extra)} rows belong to no acknowledged vote"
    if wrong := [
        token for token in stored if seen.acknowledged.get(token) not in (None, stored[token])
    ]:
        yield f"{len(wrong)} votes went to the other candidate"
    if doubled := [token for token, times in seen.counted.items() if times > 1]:
        yield f"{len(doubled)} votes were said to be counted more than once"
    if tallies != {"tabs": 0, "spaces": 0} | Counter(stored.values()):
        yield f"the tallies {tallies} are not what the rows add up to"
    if seen.unacknowledged:
        yield f"{len(seen.unacknowledged)} votes were never acknowledged"
    if seen.failures:
        yield f"{seen.failures} requests failed"


def pools(environment: dict[str, str]) -> dict[str, Any]:
    """Return the counters of all workers' pools, added up, as poolstats knows them."""
    answer = subprocess.run(
        [sys.executable, str(MANAGE), "poolstats", "--format", "json"],
        env=environment,
        capture_output=True,
        text=True,
    )
    names = ("checkouts", "connects", "discarded", "timeouts", "refused", "exhausted")
    total: Counter[str] = Counter()
    with contextlib.suppress(ValueError):
        server = f":{environment['EXAMPLE_PORT']}"
        for process in json.loads(answer.stdout)["processes"]:
            for pool in process["pools"]:
                if server in str(pool["server"]):
                    total.update({name: pool[name] for name in names})
                    total.update({f"restarts, {k}": n for k, n in pool["restarts"].items()})
    return total


def main() -> int:
    """Run it and print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two kills")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=4)
    chosen = parser.parse_args()

    context = multiprocessing.get_context("spawn")
    with example(chosen.workers, chosen.threads) as (port, environment):
        url = (Path(environment["EXAMPLE_FOLDER"]) / "url").read_text()
        environment["EXAMPLE_PORT"] = str(psycopg.conninfo.conninfo_to_dict(url)["port"])
        results: SimpleQueue[Tallied] = context.SimpleQueue()
        voters = context.Process(target=load, args=(port, chosen.clients, chosen.seconds, results))
        voters.start()
        received: list[Tallied] = []
        # A pipe holds less than all those tokens: somebody has to read while we wait.
        reader = threading.Thread(target=lambda: received.append(results.get()), daemon=True)
        reader.start()
        ended = kill_backends(url, voters, chosen.every)
        reader.join(10)
        if not received:
            sys.exit("the clients ended without a result")
        (seen,) = received

        print(f"{chosen.clients} clients, {chosen.workers} workers of {chosen.threads} threads")
        print(f"{'sessions ended':32}{ended:10}")
        for name, number in sorted(seen.statuses.items()):
            print(f"{name:32}{number:10}")
        rate = (len(seen.pages) + len(seen.votes)) / chosen.seconds
        print(f"{'requests per second':32}{rate:10.0f}")
        for name, times in (("page", seen.pages), ("vote", seen.votes)):
            if len(times) > 1:
                cuts = statistics.quantiles(times, n=100)
                figures = f"{cuts[49] * 1e3:.0f} / {cuts[98] * 1e3:.0f} / {max(times) * 1e3:.0f}"
                print(f"{f'{name}, p50 / p99 / max in ms':32}{figures:>10}")
        for name, number in pools(environment).items():
            print(f"{f'pools: {name}':32}{number:10}")
        found = list(discrepancies(url, seen))
    for sentence in found:
        print(f"WRONG: {sentence}")
    if not found:
        print("Nothing failed, nothing was lost, nothing doubled.")
    return 1 if found else 0


def _text(path: Path) -> str:
    return path.read_text(errors="replace")


def _last_lines(text: str, count: int = 12) -> str:
    """Return the end of what the site has logged, without its own good-bye."""
    lines = [line for line in text.splitlines()[1:] if line and not line.startswith("Stop")]
    return "\n".join(["The site's last log lines:", *lines[-count:]] if lines else [])


if __name__ == "__main__":
    sys.exit(main())
