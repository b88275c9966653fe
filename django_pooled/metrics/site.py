"""The pools of one site: this process's, and those of siblings with the same databases."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING

from django_pooled.pool import registry
from django_pooled.poolstats.processes.collect import collect_all
from django_pooled.poolstats.rows import PoolRow
from django_pooled.poolstats.site import Site
from django_pooled.poolstats.sources import pooled_aliases, stats_dirs
from django_pooled.stats import socket_folder
from django_pooled.stats.snapshot import process_report

if TYPE_CHECKING:
    from django_pooled.stats.snapshot import ProcessReport
    from django_pooled.stats.socket_folder import StrPath

__all__ = ["SitePools", "SiteProcesses", "own_pools"]


@dataclass
class SitePools:
    """The site's pools at one moment, and which processes could be asked."""

    pools: list[PoolRow] = field(default_factory=list)
    answered: set[tuple[str, int]] = field(default_factory=set)
    """Host and pid of each process of the site that answered, and of this one."""
    silent: set[int] = field(default_factory=set)
    """Processes of the site, as far as is known, that are alive and did not answer in time."""


@dataclass(frozen=True)
class SiteProcesses:
    """The processes of this process's site on this host, and where they keep their sums."""

    site: Site
    folders: tuple[StrPath, ...]
    """Where its processes publish: each in that of the database that it uses first."""
    sums_folder: StrPath | None
    """The first of the ``stats_dir`` options, None for the default folder."""

    @classmethod
    def of_settings(cls) -> SiteProcesses:
        """Return those of the site that the settings of this process describe."""
        aliases = pooled_aliases()
        given = stats_dirs(aliases)
        folders: list[StrPath] = []
        for folder in given:
            # By name: for None collect_all() also finds processes that have another view of the
            # file system, which are no siblings.
            folders += socket_folder.BASES if folder is None else [folder]
        return cls(Site.of_settings(aliases), tuple(folders), next(iter(given), None))

    @property
    def key(self) -> str:
        """A short name for the site, the same in each of its processes."""
        return sha256(repr((self.site.key, self.site.databases)).encode()).hexdigest()[:16]

    def ask(self, timeout: float) -> SitePools:
        """Ask every process for its pools; no database is asked, and no pool is used.

        Args:
            timeout: Seconds that the others have for their answer.
        """
        found, own = self.own(), process_report([])
        if self.folders and socket_folder.available():
            answers = collect_all(self.folders, timeout, uid=os.geteuid(), site=self.site)
            found.silent.update(answers.silent)
            for report in answers.reports:
                # Its own answer came through its socket too, a moment later.
                if (report.host, report.pid) != (own.host, own.pid):
                    self._add(found, report)
        return found

    def own(self) -> SitePools:
        """Return the pools of this process alone."""
        found = SitePools()
        self._add(found, process_report(registry.snapshots()))
        return found

    def _add(self, found: SitePools, report: ProcessReport) -> None:
        found.answered.add((report.host, report.pid))
        for ours in self.site.own([report]):
            found.pools += [PoolRow(ours, pool) for pool in ours.pools]


def own_pools() -> list[PoolRow]:
    """Return the pools of this process alone, those of other sites' databases too."""
    report = process_report(registry.snapshots())
    return [PoolRow(report, pool) for pool in report.pools]
