"""An overview and its findings in each format of the command."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from django_pooled.poolstats.findings.overview_findings import find, status
from django_pooled.poolstats.findings.thresholds import Thresholds, verdict
from django_pooled.poolstats.tables.overview_table import as_table

if TYPE_CHECKING:
    from django_pooled.poolstats.findings.finding import Finding, Level
    from django_pooled.poolstats.tables.overview_table import Layout

    from .overview import Overview

__all__ = ["Report", "as_json"]


class Report:
    """An overview and its findings.

    Args:
        recent: The same overview, with the counts of the last seconds only.
        thresholds: Those of ``--check``.
    """

    def __init__(
        self,
        overview: Overview,
        recent: Overview | None = None,
        thresholds: Thresholds | None = None,
    ) -> None:
        self.overview = overview
        self.thresholds = thresholds or Thresholds()
        self.found = self.thresholds.judge(overview, find(overview, recent))

    @property
    def level(self) -> Level:
        """The level of the worst finding."""
        return status(self.found)

    def written(
        self, how: str, layout: Layout, *, check: bool = False, one_line: bool = False
    ) -> str:
        """Return the report in a format, with its last newline.

        Args:
            how: "table", "json" or "prometheus".
            layout: Of the table.
            check: Whether only what is wrong is written, instead of the table.
            one_line: Whether JSON has no line breaks.
        """
        if how == "json":
            indent = None if one_line else 2
            return json.dumps(as_json(self.overview, self.found), indent=indent) + "\n"
        if how == "prometheus":
            # Only here: the other formats do without prometheus_client.
            from .prometheus import as_text, of_overview

            return as_text(of_overview(self.overview, self.found))
        if check:
            return verdict(self.overview, self.found, self.thresholds) + "\n"
        return "\n".join(as_table(self.overview, self.found, layout)) + "\n"


def as_json(overview: Overview, found: list[Finding]) -> dict[str, Any]:
    """Return everything in plain values."""
    return overview.as_json() | {
        "status": status(found).name.lower(),
        "findings": [finding.as_json() for finding in found],
    }
