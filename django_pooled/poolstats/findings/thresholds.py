"""The thresholds of ``poolstats --check``, and its output for monitoring systems."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from .finding import Finding, Level
from .overview_findings import worst_first

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from django_pooled.poolstats.overview import Overview
    from django_pooled.poolstats.rows import Group

__all__ = ["MEASURES", "Limit", "Thresholds", "verdict"]


class Measure(NamedTuple):
    """A figure that thresholds can be set for."""

    option: str
    """``--warn-…`` and ``--critical-…``."""
    unit: str
    """Of the performance data: "s" and "%" are those that monitoring systems know."""
    what: str
    """Completes the help "Warning from N"."""
    replaces: str = ""
    """The kind of finding that thresholds for this replace."""


MEASURES = {
    "waiting": Measure("waiting", "", "threads that wait for a database's pools", "waiting"),
    "wait_p99": Measure(
        "wait-p99",
        "s",
        "seconds that one checkout in a hundred waited (or that the oldest waiter has waited, if "
        "that is more)",
    ),
    "in_use": Measure("in-use", "%", "percent of a database's max_size in use"),
    "server": Measure("server", "%", "percent of the server's max_connections used", "room"),
}


class Limit(NamedTuple):
    """The values from which a measure is a warning or critical; None for never."""

    warn: float | None
    critical: float | None

    def level(self, value: float) -> Level:
        """Judge a value."""
        if self.critical is not None and value >= self.critical:
            return Level.CRITICAL
        return Level.WARNING if self.warn is not None and value >= self.warn else Level.FINE


@dataclass
class Thresholds:
    """The limits that were given, by the name of their measure."""

    limits: dict[str, Limit] = field(default_factory=dict)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Thresholds:
        """Read the options of the command.

        Raises:
            ValueError: A warning would come after what is critical already.
        """
        limits = {}
        for name, measure in MEASURES.items():
            warn, critical = options[f"warn_{name}"], options[f"critical_{name}"]
            if warn is None and critical is None:
                continue
            if warn is not None and critical is not None and warn > critical:
                low, high = f"--warn-{measure.option}", f"--critical-{measure.option}"
                raise ValueError(f"{low} {warn:g} is more than {high} {critical:g}.")
            limits[name] = Limit(warn, critical)
        return cls(limits)

    def judge(self, overview: Overview, found: list[Finding]) -> list[Finding]:
        """Return the findings, with those of the thresholds in place of the rules they replace."""
        replaced = {MEASURES[name].replaces for name in self.limits} - {""}
        judged = [
            finding._replace(level=Level.FINE) if finding.kind in replaced else finding
            for finding in found
        ]
        for name, whose, value in _values(overview):
            limit, measure = self.limits.get(name), MEASURES[name]
            if limit is None or value is None or not (level := limit.level(value)):
                continue
            bound = limit.critical if level is Level.CRITICAL else limit.warn
            option = f"--{'critical' if level is Level.CRITICAL else 'warn'}-{measure.option}"
            sentence = (
                f'"{whose}": {measure.option} is {value:.3g}{measure.unit}, '
                f"and {option} {bound:g}{measure.unit}."
            )
            judged.append(Finding(level, sentence, "threshold"))
        return worst_first(judged)


def _values(overview: Overview) -> Iterator[tuple[str, str, float | None]]:
    """Yield the name of a measure, the database that it is of, and its value."""
    for group in overview.groups:
        yield "waiting", group.name, group.sum("waiting")
        yield "wait_p99", group.name, _wait(group)
        yield "in_use", group.name, 100 * group.utilisation
    for names, server in overview.servers_by_address:
        if server.error is None:
            share = 100 * server.used / (server.max_connections or 1)
            yield "server", names.strip('"').replace('"', ""), share


def _wait(group: Group) -> float | None:
    waits = [group.counters.wait.quantile(0.99), group.longest_waiting]
    return max((wait for wait in waits if wait is not None), default=None)


def verdict(overview: Overview, found: list[Finding], thresholds: Thresholds) -> str:
    """Write the status, performance data and findings as monitoring plugins do.

    https://www.monitoring-plugins.org/doc/guidelines.html
    """
    level = found[0].level if found else Level.FINE
    in_use = sum(group.sum("in_use") for group in overview.groups)
    size = sum(group.sum("max_size") for group in overview.groups)
    waiting = sum(group.sum("waiting") for group in overview.groups)
    figures = f"{in_use} of {size} connections in use, {waiting} waiting"
    data = " ".join(_data(overview, thresholds))
    lines = [f"{level.name}: {figures}{' | ' if data else ''}{data}"]
    # Text after a bar would be taken for more data.
    lines += [finding.told.replace("|", "/") for finding in found if finding.level]
    return "\n".join(lines)


def _data(overview: Overview, thresholds: Thresholds) -> Iterator[str]:
    for name, whose, value in _values(overview):
        if value is not None:
            limit = thresholds.limits.get(name, Limit(None, None))
            bounds = ";".join("" if bound is None else f"{bound:g}" for bound in limit)
            unit = MEASURES[name].unit
            label = re.sub(r"[^\w.-]+", "_", f"{whose}_{name}")
            yield f"{label}={value:.6g}{unit};{bounds}".rstrip(";")
