"""The metrics of a site or of one process as text, for Prometheus."""

# https://prometheus.io/docs/instrumenting/exposition_formats/
# https://github.com/prometheus/OpenMetrics/blob/main/specification/OpenMetrics.md

from __future__ import annotations

import logging
import re
import socket
from typing import TYPE_CHECKING

from django_pooled.diagnostics.log_fields import facts
from django_pooled.diagnostics.redaction import told
from django_pooled.poolstats.overview import PoolRow
from django_pooled.poolstats.prometheus import SILENT, gauge_lines, pool_lines

from .site import Site, own_pools
from .sums_file import open_book

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .site import Look, PoolOfProcess

    Row = tuple[dict[str, str], PoolRow]

__all__ = ["as_openmetrics", "by_process", "of_pools", "of_this_process", "summed"]

logger = logging.getLogger("django_pooled.metrics.exposition")


def summed(timeout: float) -> str:
    """Return the metrics of the site, over all of its processes on this host.

    Where no ledger can be kept, a sum could go down: then each process has metrics of its own, and
    a comment says why.

    Args:
        timeout: Seconds that the other processes have for their answer.
    """
    site = Site.of_settings()
    try:
        if not site.folders:
            raise OSError('OPTIONS["pool"]["stats_dir"] is False')
        with open_book(site.ledger_folder, site.key, timeout) as book:
            # Within, so that no other process sees more, and writes it down, in between.
            look = site.look(timeout)
            book.settle(look)
        figures = book.figures(look)
    except OSError as error:
        logger.debug(
            "The metrics are not added up: %s", told(error), extra=facts("not_summed", error=error)
        )
        return f"# Not added up over processes: {told(error)}.\n" + _by_process(site.look(timeout))
    return _text([({"database": alias}, PoolRow.of(found)) for alias, found in figures], look)


def by_process(timeout: float) -> str:
    """Return the metrics of each of the site's processes, with its pid.

    Args:
        timeout: Seconds that the other processes have for their answer.
    """
    return _by_process(Site.of_settings().look(timeout))


def of_this_process() -> str:
    """Return the metrics of this process alone."""
    return of_pools(own_pools())


def of_pools(pools: Iterable[PoolOfProcess]) -> str:
    """Return the metrics of some pools, those of one database added up.

    Args:
        pools: As their processes report them.
    """
    return _text([({"database": pool.alias}, PoolRow.of(pool.figures)) for pool in pools])


def _by_process(look: Look) -> str:
    return _text([(_labels(pool), PoolRow.of(pool.figures)) for pool in look.pools], look)


def _labels(pool: PoolOfProcess) -> dict[str, str]:
    labels = {"database": pool.alias, "pid": str(pool.pid)}
    # In another container, where the same pids are.
    return labels if pool.host == socket.gethostname() else {**labels, "host": pool.host}


def _text(rows: list[Row], look: Look | None = None) -> str:
    lines = [*pool_lines(rows)]
    if look is not None:
        lines += gauge_lines("processes", len(look.answered), "Processes that answered.")
        lines += gauge_lines("silent_processes", len(look.silent), SILENT)
    return "".join(f"{line}\n" for line in lines)


def as_openmetrics(text: str) -> str:
    """Return the same in the format OpenMetrics 1.0.0.

    There a counter's family has no ``_total`` in its name, bounds are floats, and comments are not
    allowed.

    Args:
        text: In the older format.
    """
    text = re.sub(r"^# (?!HELP |TYPE ).*\n", "", text, flags=re.MULTILINE)
    counters = re.findall(r"^# TYPE (\w+)_total counter$", text, re.MULTILINE)
    for name in counters:
        text = re.sub(rf"^# (HELP|TYPE) {name}_total ", rf"# \1 {name} ", text, flags=re.MULTILINE)
    return re.sub(r'(?<=le=")(\d+)(?=")', r"\1.0", text) + "# EOF\n"
