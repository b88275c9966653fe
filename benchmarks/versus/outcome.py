"""What one workload found: figures by round, kept as JSON and shown as Markdown."""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Metric", "Outcome", "circumstances", "interleaved", "joined", "spread"]

PACKAGES = (
    *("Django", "psycopg", "psycopg-binary", "psycopg-pool", "django-db-connection-pool"),
    *("SQLAlchemy", "django-db-geventpool", "gevent", "gunicorn"),
)


@dataclass(frozen=True)
class Metric:
    """One column."""

    key: str
    title: str
    factor: float = 1.0
    """From what is kept to what is shown."""
    digits: int = 0
    more_is_better: bool = False
    at: float | None = None
    """Its place on the x axis, where a row of columns is a curve."""


@dataclass
class Outcome:
    """What one workload found."""

    name: str
    title: str
    metrics: list[Metric]
    settings: dict[str, Any]
    figures: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """By contestant and metric, one for each round."""
    absent: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    circumstances: dict[str, Any] = field(default_factory=dict)

    def add(self, contestant: str, found: dict[str, float]) -> None:
        """Note one round of one contestant."""
        rows = self.figures.setdefault(contestant, {})
        for key, value in found.items():
            rows.setdefault(key, []).append(value)

    def save(self, folder: Path) -> None:
        """Write ``NAME.json``."""
        text = json.dumps(asdict(self), indent=1, default=str)
        (folder / f"{self.name}.json").write_text(text + "\n")

    @classmethod
    def load(cls, path: Path) -> Outcome:
        """Read what `save` wrote."""
        kept = json.loads(path.read_text())
        kept["metrics"] = [Metric(**metric) for metric in kept["metrics"]]
        return cls(**kept)

    def markdown(self) -> str:
        """Return the table, and under what circumstances it came about."""
        lines = [f"# {self.title}", "", f"![{self.title}]({self.name}.svg)", ""]
        lines += ["Median of the rounds (least to most).", ""] if self._rounds() > 1 else []
        lines += [
            "| |" + "|".join(metric.title for metric in self.metrics) + "|",
            "|---|" + "--:|" * len(self.metrics),
        ]
        for name, rows in self.figures.items():
            cells = [_cell(rows.get(metric.key), metric) for metric in self.metrics]
            lines.append(f"| {name} |" + "|".join(cells) + "|")
        lines += ["", *(f"- {note}" for note in self.notes)]
        lines += [f"- {name} is missing: {why}" for name, why in self.absent.items()]
        lines += ["", "| circumstances | |", "|---|---|"]
        lines += [f"| {key} | {value} |" for key, value in self.settings.items()]
        lines += [f"| {key} | {value} |" for key, value in self.circumstances.items()]
        return "\n".join(lines) + "\n"

    def _rounds(self) -> int:
        return max((len(v) for rows in self.figures.values() for v in rows.values()), default=0)


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Return median, least and most."""
    return statistics.median(values), min(values), max(values)


def _cell(values: Sequence[float] | None, metric: Metric) -> str:
    if not values:
        return ""
    shown = [f"{value * metric.factor:,.{metric.digits}f}" for value in spread(values)]
    if len(values) == 1:
        return shown[0]
    return f"**{shown[0]}** ({shown[1]} to {shown[2]})"


def interleaved(
    outcome: Outcome,
    rounds: int,
    contestants: Sequence[str],
    turn: Callable[[str], dict[str, float]],
) -> None:
    """Give each contestant one turn in each round, in an order that changes."""
    for number in range(rounds):
        order = list(contestants)
        random.shuffle(order)
        found = {}
        for name in order:
            if name in outcome.absent:
                continue
            try:
                found[name] = turn(name)
            except RuntimeError as error:
                outcome.absent[name] = str(error).strip().splitlines()[-1]
                outcome.figures.pop(name, None)
        for name in contestants:
            if name in found:
                outcome.add(name, found[name])
        print(f"  {outcome.name}: round {number + 1} of {rounds}", flush=True)


def joined(launches: Sequence[Outcome]) -> Outcome:
    """Return one outcome of several of one workload, between which all processes began anew."""
    whole, *others = launches
    for other in others:
        whole.absent |= other.absent
        for name, rows in other.figures.items():
            for key, values in rows.items():
                whole.figures.get(name, {}).get(key, []).extend(values)
    for name in whole.absent:
        whole.figures.pop(name, None)
    if others:
        whole.settings["launches"] = f"{len(launches)}, each with that many rounds"
    return whole


def circumstances(server_parameters: dict[str, Any]) -> dict[str, Any]:
    """Return machine, versions and command."""
    with psycopg.connect(**server_parameters) as connection:
        server_version = connection.info.server_version
    packages = []
    for package in PACKAGES:
        try:
            packages.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return {
        "taken": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "command": "python benchmarks/" + " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "revision": _revision(),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()} "
        f"{platform.release()}",
        "Python": platform.python_version(),
        "packages": ", ".join(packages),
        "libpq": psycopg.pq.version(),
        "PostgreSQL": server_version,
        "PgBouncer": _pgbouncer(),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _revision() -> str:
    git = ["git", "-C", str(Path(__file__).parents[2])]
    said = subprocess.run([*git, "describe", "--always"], capture_output=True, text=True).stdout
    # Results of workloads that ran before are no change to what is measured.
    sources = ["--", "django_pooled", "benchmarks", ":!benchmarks/results"]
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", *sources]).returncode
    return (said.strip() or "unknown") + (", changed" if changed else "")


def _pgbouncer() -> str:
    from .pgbouncer import PROGRAM

    if PROGRAM is None:
        return "none"
    said = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True).stdout
    return said.split("\n")[0].removeprefix("PgBouncer ")
