"""The last figures of a process, written down as it ends."""

from __future__ import annotations

import logging

from django_pooled.diagnostics.log_fields import event_fields
from django_pooled.diagnostics.redaction import told
from django_pooled.pool import registry

from .site import SiteProcesses
from .sums_file import is_kept, open_sums

__all__ = ["write_last_figures"]

logger = logging.getLogger("django_pooled.metrics.farewell")

PATIENCE = 0.2
"""Seconds that the end of a process waits for others that write."""


def write_last_figures() -> None:
    """Add this process's last figures to the site's sums, if they are kept.

    Otherwise the figures since the last scrape would be lost with each worker that is recycled
    after so many requests. Those of a process that is killed are lost.
    """
    if not registry.snapshots():
        return
    try:
        site = SiteProcesses.of_settings()
        if site.folders and is_kept(site.sums_folder, site.key):
            with open_sums(site.sums_folder, site.key, PATIENCE) as sums:
                sums.update(site.own())
    except OSError as error:
        logger.debug(
            "cannot write the last figures of this process: %s",
            told(error),
            extra=event_fields("farewell_failed", error=error),
        )
