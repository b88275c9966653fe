"""What a fleet of instances does to one server that was restarted: a simulation.

    python benchmarks/fleet.py

Only the costs of a connect and of a refusal are measured: the server's processor time for them, on
this machine.
The rest is computed, event by event (``_fleet.py``), by each contestant's own rules and with its
own backoff. At 0 the server goes away and takes all connections with it; while it is away connects
are refused at once; then it opens as many at a time as it has cores. Requests go on all the while.
Results go to ``results/fleet.md`` and ``results/fleet.svg``.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from _common import ROOT, arguments, server
from _fleet import Client, Clock, Fleet, Native, Ours, PerRequest, Server
from _fleet_full import table as caps_when_full
from _fleet_plot import lines

from django_pooled.pool.backoff import Backoff
from django_pooled.pool.connect_errors import is_server_full

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from _common import EmbeddedServer

    MakeClient = Callable[[Clock, Server, int], Client]

RESULTS = Path(__file__).with_name("results")

CONTESTANTS: dict[str, MakeClient] = {
    "a connect per request": PerRequest,
    "native": Native,
    "native, checks": lambda clock, one, size: Native(clock, one, size, checks=True),
    "django_pooled": Ours,
    "the same, maximum 5 s": lambda clock, one, size: Ours(
        clock, one, size, backoff=Backoff(initial=0.1, maximum=5.0)
    ),
}

SCENARIOS: dict[str, dict[str, float]] = {
    "A restart": {},
    "A long outage": {"outage": 60.0, "seconds": 180.0},
    "A small server, few requests": {"cores": 2, "think": 20.0, "seconds": 90.0},
    "More connections than the server admits": {"max_connections": 1500},
    "A full server that empties": {"max_connections": 2000, "others": 1000, "leave": 50.0},
}
"""What differs from the arguments' own values."""


def cost_of_a_connect(of: EmbeddedServer, times: int) -> float:
    """Return the server's processor time for one connect, a query and the end (Linux).

    What the client's side and other programs take meanwhile does not count.
    """
    with psycopg.connect(**of.parameters("postgres"), autocommit=True) as asking:
        postmaster = _postmaster(of)
        before = _ticks(postmaster)
        for _ in range(times):
            with psycopg.connect(**of.parameters("postgres"), autocommit=True) as connection:
                connection.execute("SELECT 1")
        # The last ones have ended and been counted.
        others = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
        while asking.execute(others).fetchone() != (1,):
            continue
        return (_ticks(postmaster) - before) / os.sysconf("SC_CLK_TCK") / times


def cost_of_a_refusal(of: EmbeddedServer, times: int) -> float:
    """Return the server's processor time for a connect that it refuses for being full (Linux)."""
    postmaster = _postmaster(of)
    with ExitStack() as held:
        while not _refuses(of, held):
            continue
        before, refused = _ticks(postmaster), 0
        while refused < times:
            # Not each one: a connection from before may have been ending yet.
            refused += _refuses(of, held)
        return (_ticks(postmaster) - before) / os.sysconf("SC_CLK_TCK") / times


def _refuses(of: EmbeddedServer, held: ExitStack) -> bool:
    try:
        held.enter_context(psycopg.connect(**of.parameters("postgres")))
    except psycopg.OperationalError as error:
        if not is_server_full(error):
            raise
        return True
    return False


def _postmaster(of: EmbeddedServer) -> int:
    return int((of.data / "postmaster.pid").read_text().split()[0])


def _ticks(pid: int) -> int:
    # utime, stime, cutime, cstime: https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15]))


EXPLAINED = """Connects are those that were tried: each second while the server was away, and in the
busiest quarter of a second after it. "Full" are those refused by max_connections. Times run from
the server's return: until an instance had its first request served, which where requests are few
is mostly until one came; and until the last request that failed, or waited for over a second.
Without checks each dead connection of a native pool fails a request. A server that is full
stays so, unless other clients leave: none of the pools gives up what it has."""


class Run:
    """One contestant's fleet, from the moment the server goes away."""

    def __init__(self, make: MakeClient, cost: float, chosen: argparse.Namespace) -> None:
        random.seed(chosen.seed)
        self._chosen = chosen
        clock = Clock()
        self.server = Server(
            clock,
            chosen.outage,
            cost,
            chosen.cores,
            chosen.max_connections,
            chosen.others,
            chosen.leave,
        )
        self.fleet = Fleet(clock, chosen.think, chosen.hold)
        for number in range(chosen.instances):
            client = make(clock, self.server, chosen.size)
            for _ in range(chosen.threads):
                clock.resume(self.fleet.thread(number, client))
        clock.run(chosen.seconds)

    def per_second(self, width: float = 0.25) -> list[tuple[float, float]]:
        """Return connects tried per second, over time."""
        bins = [0] * round(self._chosen.seconds / width)
        for at in self.server.knocks:
            bins[min(int(at / width), len(bins) - 1)] += 1
        return [(number * width, n / width) for number, n in enumerate(bins)]

    def row(self) -> list[str]:
        """Return the cells of the table, in the order of ``HEAD``."""
        back = self._chosen.outage
        away = sum(at < back for at in self.server.knocks)
        after = [rate for at, rate in self.per_second() if at >= back]
        failed_after = [at - back for at in self.fleet.failures if at >= back]
        first = sorted(max(0.0, at - back) for at in self.fleet.first_served.values())
        unserved = self._chosen.instances - len(first)
        late = [at - back for at in self.fleet.late if at >= back]
        quiet = max([0.0, *failed_after, *late])
        return [
            f"{away / back:,.0f}",
            f"{max(after):,.0f}",
            f"{len(self.server.refused_full):,}",
            f"{self.server.most_open:,}",
            f"{len(self.fleet.failures) - len(failed_after):,}",
            f"{len(failed_after):,}",
            f"{statistics.median(first):.2f} s",
            f"{unserved} never" if unserved else f"{first[-1]:.2f} s",
            f"{quiet:.1f} s",
        ]


HEAD = (
    "connects/s, away",
    "peak/s after",
    "refused: full",
    "most open",
    "failed, away",
    "failed after",
    "instance served: median",
    "last",
    "last failed or late",
)


def table(rows: dict[str, Sequence[str]]) -> str:
    """Return a table in Markdown."""
    head = ["", *HEAD]
    body = [[name, *cells] for name, cells in rows.items()]
    aligned = ["---", *["---:"] * len(HEAD)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, aligned, *body])


def main() -> None:
    """Measure, simulate, print, and write the results."""
    parser = arguments(__doc__)
    parser.add_argument("--instances", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=4, help="of each instance")
    parser.add_argument("--size", type=int, default=2, help="connections of each pool")
    parser.add_argument("--think", type=float, default=2.0, help="s between requests of a thread")
    parser.add_argument("--hold", type=float, default=0.02, help="s that a request needs one")
    parser.add_argument("--outage", type=float, default=5.0, help="s")
    parser.add_argument("--seconds", type=float, default=60.0, help="simulated")
    parser.add_argument("--cores", type=int, default=16, help="of the server")
    parser.add_argument("--max-connections", type=int, default=2500)
    parser.add_argument("--others", type=int, default=0, help="connections of other clients")
    parser.add_argument("--leave", type=float, default=0.0, help="of them that end in a second")
    parser.add_argument(
        "--costs", type=float, nargs=2, help="s of a core for a connect, a refusal; else measured"
    )
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.instances, chosen.max_connections, chosen.cores = 100, 250, 2
    if (costs := chosen.costs) is None:
        times = 100 if chosen.quick else 500
        with server() as one:
            version = psycopg.connect(**one.parameters("postgres")).info.server_version // 10000
            costs = cost_of_a_connect(one, times), cost_of_a_refusal(one, times)
        told = f"measured: PostgreSQL {version}, {platform.machine()}, {os.cpu_count()} cores"
    else:
        told = "given"
    cost, refusal = costs
    price = (
        f"A connect costs the server {cost * 1e3:.2f} ms of one core, and one that it refuses for "
        f"being full {refusal * 1e3:.2f} ms ({told})."
    )
    print(price)
    command = "`python benchmarks/fleet.py`, a simulation."
    text = ["# A fleet after a restart of its server", "", command, price, "", EXPLAINED]
    for number, (title, different) in enumerate(SCENARIOS.items()):
        scene = argparse.Namespace(**{**vars(chosen), **different})
        runs = {name: Run(make, cost, scene) for name, make in CONTESTANTS.items()}
        part = (
            f"{describe(scene, cost)}\n\n{table({name: run.row() for name, run in runs.items()})}"
        )
        print(f"\n{title}\n\n{part}", flush=True)
        text += ["", f"## {title}", "", part]
        if number == 0:
            picture = plot(runs, scene)
            text += ["", "![Connects tried per second, over time](fleet.svg)"]
        if chosen.quick:
            break
    part = caps_when_full(cost, refusal, chosen.instances)
    print(f"\n{(title := 'How long to wait for a full server')}\n\n{part}")
    if chosen.quick:
        return
    text += ["", f"## {title}", "", part]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "fleet.md").write_text("\n".join([*text, ""]))
    (RESULTS / "fleet.svg").write_text(picture)
    print(f"\nwritten: {RESULTS.relative_to(ROOT)}/fleet.md, fleet.svg")


def describe(scene: argparse.Namespace, cost: float) -> str:
    """Say what is simulated."""
    rate = scene.instances * scene.threads / (scene.think + scene.hold)
    others = (
        f" Other clients have {scene.others:,} of them, and {scene.leave:g} a second end."
        if scene.others
        else ""
    )
    return (
        f"{scene.instances:,} instances, {scene.threads} threads and {scene.size} connections "
        f"each, {rate:,.0f} requests a second of {scene.hold * 1e3:g} ms. The server is away for "
        f"{scene.outage:g} s; it has {scene.cores} cores, so it opens {scene.cores / cost:,.0f} "
        f"connections a second at most, and max_connections {scene.max_connections:,}."
        f"{others}"
    )


def plot(runs: dict[str, Run], scene: argparse.Namespace) -> str:
    """Draw connects per second, until some time after the server is back."""
    shown = {
        name: [point for point in run.per_second() if point[0] <= 3 * scene.outage]
        for name, run in runs.items()
    }
    title = f"{scene.instances:,} instances; the server is away from 0 to {scene.outage:g} s"
    return lines(title, "seconds", "connects tried per second", shown)


if __name__ == "__main__":
    main()
