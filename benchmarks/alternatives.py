"""Every way to have connections from Django beside ours, in one run.

    python benchmarks/alternatives.py --quick
    python benchmarks/alternatives.py --workloads cycle http

Contestants take turns, in an order that changes from round to round, and keep their processes and
connections in between. What was found goes to ``benchmarks/results/``: for each workload a table,
a plot and the figures of each round; and from all that are there, which bars are met.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from _common import BENCHMARKS, arguments
from versus import bars
from versus.chart import drawn
from versus.outcome import Outcome, circumstances, joined
from versus.scale import Scale
from versus.venue import opened
from versus.workloads import WORKLOADS

if TYPE_CHECKING:
    import argparse

HEAD = """# Results

Written by `python benchmarks/alternatives.py`. A bar is met when the median of the ratios, one for
each round, is. Each workload's page says on which machine, with which versions, by which command
and under which load it was measured. Figures of two runs say nothing about each other.

"""


def measure(chosen: argparse.Namespace) -> None:
    """Run each workload that was asked for, and write its files as soon as it is done."""
    scale = Scale.quick() if chosen.quick else Scale()
    options = ("rounds", "long_rounds", "seconds", "launches")
    given = {name: getattr(chosen, name) for name in options}
    scale = replace(scale, **{name: value for name, value in given.items() if value})
    folder: Path = chosen.results
    folder.mkdir(exist_ok=True)
    with opened() as server:
        for name in chosen.workloads:
            load, began = os.getloadavg()[0], time.monotonic()
            launches = []
            for _ in range(scale.launches):
                found = WORKLOADS[name](server, scale.of_a_launch)
                launches.append(found if isinstance(found, list) else [found])
            for parts in zip(*launches, strict=True):
                outcome = joined(parts)
                outcome.circumstances = {
                    **circumstances(server.parameters()),
                    "load of the machine": f"{load:.1f} before, {os.getloadavg()[0]:.1f} after",
                    "took": f"{time.monotonic() - began:.0f} s",
                }
                write(outcome, folder)


def write(outcome: Outcome, folder: Path) -> None:
    """Write one workload's files, and the page over all."""
    outcome.save(folder)
    (folder / f"{outcome.name}.md").write_text(outcome.markdown())
    (folder / f"{outcome.name}.svg").write_text(drawn(outcome))
    print(outcome.markdown(), flush=True)
    summarize(folder)


def summarize(folder: Path) -> None:
    """Write README.md from the results that are there."""
    found = {path.stem: Outcome.load(path) for path in sorted(folder.glob("*.json"))}
    names = [name for work in WORKLOADS for name in (work, f"{work}_p99")]
    outcomes = {name: found[name] for name in names if name in found}
    table = bars.table(outcomes)
    pages = [f"- [{outcome.title}]({name}.md)" for name, outcome in outcomes.items()]
    (folder / "README.md").write_text(HEAD + table + "\n" + "\n".join(pages) + "\n")


def main() -> int:
    """Measure and write; an exit code of 0 says nothing about the bars."""
    parser = arguments(__doc__)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--rounds", type=int, help="of workloads with short turns")
    parser.add_argument("--long-rounds", type=int, help="of workloads with long turns")
    parser.add_argument("--seconds", type=float, help="of a long turn")
    parser.add_argument("--launches", type=int, help="of all processes, which share the rounds")
    parser.add_argument("--results", type=Path, default=BENCHMARKS / "results", help="folder")
    chosen = parser.parse_args()
    # Else it would leave servers and workers behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    measure(chosen)
    print((chosen.results / "README.md").read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
