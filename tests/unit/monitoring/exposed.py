"""The metrics that Prometheus gets, and what a query asks for that is not among them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, get_args

from prometheus_client.parser import text_string_to_metric_families

from django_pooled.poolstats.findings.finding import Finding, Kind, Level
from django_pooled.poolstats.findings.overview_findings import find
from django_pooled.poolstats.metric_definitions import BY_KIND, PROCESSES
from django_pooled.poolstats.prometheus import as_text, of_overview, single

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django_pooled.poolstats.overview import Overview

__all__ = ["samples", "unknown_in"]

OF_TARGET = {"job": "pools", "instance": "web-1"}
"""Labels that Prometheus adds."""

VALUES = {
    ("django_pooled_" + metric.name, metric.labels[0]): {*metric.always}
    for metric in BY_KIND
    if metric.always
} | {
    ("django_pooled_findings", "finding"): {
        Finding(Level.FINE, "", kind).code for kind in get_args(Kind)
    },
    ("django_pooled_findings", "level"): {level.name.lower() for level in Level},
}
"""All values of labels that have a few."""


def samples(look: Overview) -> Iterator[tuple[str, dict[str, str], float]]:
    """Yield name, labels and value of each sample of the page and of the command."""
    families = [*of_overview(look, find(look)), single(*PROCESSES, len(look.processes))]
    for family in text_string_to_metric_families(as_text(families)):
        for sample in family.samples:
            yield sample.name, {**sample.labels, **OF_TARGET}, sample.value


def unknown_in(query: str, look: Overview) -> list[str]:
    """Return names, labels and values in a query that no sample has.

    Args:
        query: In PromQL.
        look: One in which each metric has samples.
    """
    labels: dict[str, set[str]] = {}
    for name, given, _ in samples(look):
        labels.setdefault(name, set()).update(given)
    unknown, asked = [], set[str]()
    for name, matchers in re.findall(r"\b(django_pooled_\w+)(\{[^}]*\})?", query):
        if name not in labels:
            unknown.append(name)
            continue
        asked |= labels[name]
        for label, value in re.findall(r'(\w+)[=!]~?"([^"]*)"', matchers):
            if label not in labels[name]:
                unknown.append(f"{name}{{{label}}}")
            values = VALUES.get((name, label))
            if values is not None:
                unknown += [f"{label}={it}" for it in value.split("|") if it not in values]
    for group in re.findall(r"\bby \(([^)]*)\)", query):
        unknown += [label for label in group.split(", ") if label not in asked]
    return unknown
