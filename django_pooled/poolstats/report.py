"""An overview and its findings in each format of the command."""

from __future__ import annotations

import getpass
import json
import os
from typing import TYPE_CHECKING, Any

from django_pooled.poolstats.findings.finding import Level
from django_pooled.poolstats.findings.overview_findings import find, status
from django_pooled.poolstats.findings.thresholds import Thresholds, verdict
from django_pooled.poolstats.tables import overview_table

if TYPE_CHECKING:
    from django_pooled.poolstats.findings.finding import Finding
    from django_pooled.poolstats.tables.overview_table import Layout

    from .overview import Overview

__all__ = ["NOTHING", "Report", "as_json", "as_table"]

NOTHING = """\
No process with an open pool was found.

A process can be seen from its first use of the database on, if its DATABASES entry has
ENGINE = "django_pooled". Start the site and make one request that reads from the database.

If it runs already:
  - under another user: run this command as that user, or as root (now: user {user});
  - in another container: run it there;
  - with OPTIONS["pool"]["stats_dir"]: False turns publishing off, a folder has to be the same
    here (--stats-dir).
Looked in: {folders}
"""


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

            return as_text(of_overview(self.overview))
        if check:
            return verdict(self.overview, self.found, self.thresholds) + "\n"
        return "\n".join(as_table(self.overview, self.found, layout)) + "\n"


def as_json(overview: Overview, found: list[Finding]) -> dict[str, Any]:
    """Return everything in plain values."""
    return overview.as_json() | {
        "status": status(found).name.lower(),
        "findings": [finding.as_json() for finding in found],
    }


def as_table(
    overview: Overview,
    found: list[Finding],
    layout: Layout,
    *,
    recent: Overview | None = None,
) -> list[str]:
    """Return the lines of the table, or help where there is nothing to show."""
    collection = overview.collection
    lines = [overview_table.heading(overview, found, layout.paint), ""]
    if collection.askable and not overview.groups and not collection.silent:
        folders = ", ".join(collection.folders) or "no folder"
        lines += NOTHING.format(user=_user(), folders=folders).splitlines()
        lines.append("")
        found = [finding for finding in found if finding.level is not Level.UNKNOWN]
    return lines + overview_table.render(overview, found, layout, recent=recent)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container's user often has a number only; the error differs between Pythons.
        return str(os.geteuid())
