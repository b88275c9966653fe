"""What a process has counted since the last scrape, written down as it ends."""

from __future__ import annotations

import logging

from django_pooled.diagnostics.log_fields import facts
from django_pooled.diagnostics.redaction import told
from django_pooled.pool import registry

from .site import Site
from .sums_file import is_kept, open_book

__all__ = ["write_down"]

logger = logging.getLogger("django_pooled.metrics.farewell")

PATIENCE = 0.2
"""Seconds that the end of a process waits for others that write."""


def write_down() -> None:
    """Put this process's last figures into the site's book, if it has one.

    Workers that are recycled after so many requests would else take what they did since the last
    scrape along: much of it, where that is often. Who is killed says no farewell.
    """
    if not registry.snapshots():
        return
    try:
        site = Site.of_settings()
        if site.folders and is_kept(site.ledger_folder, site.key):
            with open_book(site.ledger_folder, site.key, PATIENCE) as book:
                book.settle(site.look_at_own())
    except OSError as error:
        logger.debug(
            "The last figures were not written down: %s",
            told(error),
            extra=facts("farewell_failed", error=error),
        )
