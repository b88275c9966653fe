"""The metrics of a site or of one process, as metric families of prometheus_client."""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING, NamedTuple

from django_pooled.diagnostics.log_fields import event_fields
from django_pooled.diagnostics.redaction import told
from django_pooled.poolstats.metric_definitions import PROCESSES, SILENT_PROCESSES, pool_labels
from django_pooled.poolstats.prometheus import Source, of_pools, single

from .site import SiteProcesses, own_pools
from .sums_file import open_sums

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client import Metric

    from django_pooled.poolstats.rows import PoolRow

    from .site import SitePools

__all__ = ["Exposition", "by_process", "of_this_process", "summed"]

logger = logging.getLogger("django_pooled.metrics.exposition")


class Exposition(NamedTuple):
    """Metrics, and why they are not added up."""

    families: list[Metric]
    not_summed: str = ""
    """Why each process has metrics of its own; empty where they are added up."""


def summed(timeout: float, *, openmetrics: bool = False) -> Exposition:
    """Return the metrics of the site, over all of its processes on this host.

    Where the sums can't be kept, they could go down: then each process has metrics of its own.

    Args:
        timeout: Seconds that the other processes have for their answer.
        openmetrics: Whether they are to be written in that format.
    """
    site = SiteProcesses.of_settings()
    try:
        if not site.folders:
            raise OSError('OPTIONS["pool"]["stats_dir"] is False')
        with open_sums(site.sums_folder, site.key, timeout) as sums:
            # Within, so that no other process sees more, and writes it down, in between.
            site_pools = site.ask(timeout)
            sums.update(site_pools)
    except OSError as error:
        logger.debug(
            "cannot add up the metrics of all processes: %s",
            told(error),
            extra=event_fields("not_summed", error=error),
        )
        return by_process(timeout, openmetrics=openmetrics)._replace(not_summed=told(error))
    figures = sums.figures(site_pools)
    sources = [Source(pool_labels(alias), pool, counters) for alias, pool, counters in figures]
    return Exposition([*of_pools(sources, openmetrics=openmetrics), *_processes(site_pools)])


def by_process(timeout: float, *, openmetrics: bool = False) -> Exposition:
    """Return the metrics of each of the site's processes, with its pid.

    Args:
        timeout: Seconds that the other processes have for their answer.
        openmetrics: Whether they are to be written in that format.
    """
    site_pools = SiteProcesses.of_settings().ask(timeout)
    sources = [Source(_labels(row), row.pool, row.counters) for row in site_pools.pools]
    return Exposition([*of_pools(sources, openmetrics=openmetrics), *_processes(site_pools)])


def of_this_process() -> list[Metric]:
    """Return the metrics of this process alone, those of one database added up."""
    pools = own_pools()
    return of_pools(Source(pool_labels(it.pool.alias), it.pool, it.counters) for it in pools)


def _labels(row: PoolRow) -> dict[str, str]:
    # In another container, there may be processes with the same pids.
    host = None if row.process.host == socket.gethostname() else row.process.host
    return pool_labels(row.pool.alias, pid=row.process.pid, host=host)


def _processes(pools: SitePools) -> Iterable[Metric]:
    yield single(*PROCESSES, len(pools.answered))
    yield single(*SILENT_PROCESSES, len(pools.silent))
