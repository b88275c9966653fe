"""One site, told from others that run as the same user by its key and its databases."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from django.db import connections

from django_pooled.backend.parameters import server_of
from django_pooled.backend.site import this_site

if TYPE_CHECKING:
    from collections.abc import Iterable

    from django_pooled.stats.snapshot import PoolSnapshot, ProcessReport

__all__ = ["Site"]


@dataclass(frozen=True)
class Site:
    """A site, and which pools belong to it.

    Two sites of one user may share a folder, an alias ("default") and even a database: then their
    keys differ. The tests of a site have its key, and other databases.
    """

    key: str
    databases: tuple[tuple[str, str], ...]
    """Alias and address of each pooled database."""

    @classmethod
    def of_settings(cls, aliases: Iterable[str]) -> Site:
        """Return the site that the settings of this process describe.

        Args:
            aliases: Keys of ``DATABASES`` that are pooled.
        """
        found = sorted((alias, server_of(connections.settings[alias])) for alias in aliases)
        return cls(this_site().key, tuple(found))

    def server(self, alias: str) -> str:
        """Return the address of a database; empty if the settings do not have it."""
        return dict(self.databases).get(alias, "")

    def configures(self, pool: PoolSnapshot) -> bool:
        """Tell whether it is the pool of a database that the settings have."""
        return pool.site == self.key and self.server(pool.alias) == pool.server

    def has(self, pool: PoolSnapshot) -> bool:
        """Tell whether a pool is of this site, and not of its tests.

        A database that a process has added to its settings is of the site too.
        """
        return pool.site == self.key and self.server(pool.alias) in ("", pool.server)

    def own(self, reports: Iterable[ProcessReport]) -> list[ProcessReport]:
        """Return the reports of processes that have pools of this site, with those pools alone."""
        found: list[ProcessReport] = []
        for report in reports:
            pools = [pool for pool in report.pools if self.has(pool)]
            if pools:
                history = [
                    replace(past, pools=[pool for pool in past.pools if self.has(pool)])
                    for past in report.history
                ]
                found.append(replace(report, pools=pools, history=history))
        return found
