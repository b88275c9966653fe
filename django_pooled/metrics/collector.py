"""A collector for projects that have a registry of prometheus_client's already."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .page import TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client import Metric

__all__ = ["PoolCollector"]


class PoolCollector:
    """The pools' metrics in a registry: ``REGISTRY.register(PoolCollector())``.

    They are those of the process that is asked, as are all others in ``REGISTRY``. A registry
    with prometheus_client's ``MultiProcessCollector`` takes the whole site's.

    It reads the pools when it is asked, so it may be registered before a fork and before there is
    any pool.

    Args:
        whole_site: Whether to add up all processes of the site on this host, as the view
            `prometheus` does.
    """

    def __init__(self, *, whole_site: bool = False) -> None:
        self._whole_site = whole_site

    def collect(self) -> Iterable[Metric]:
        """Called by the registry for each scrape."""
        from .exposition import of_this_process, summed

        return summed(TIMEOUT).families if self._whole_site else of_this_process()

    def describe(self) -> Iterable[Metric]:
        """Called by the registry to learn the metrics' names, without asking other processes."""
        from .exposition import of_this_process

        return of_this_process()
