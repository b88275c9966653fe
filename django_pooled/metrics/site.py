"""The pools of one site: of this process, and of its siblings, which have the same databases."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING

from django_pooled.pool import registry
from django_pooled.poolstats.collect import collect_all
from django_pooled.poolstats.rows import PoolRow
from django_pooled.poolstats.sources import databases, of_site, pooled_aliases, stats_dirs
from django_pooled.stats import socket_folder
from django_pooled.stats.snapshot import process_report

if TYPE_CHECKING:
    from django_pooled.stats.snapshot import ProcessReport
    from django_pooled.stats.socket_folder import StrPath

__all__ = ["Look", "Site", "own_pools"]


@dataclass
class Look:
    """The site's pools at one moment, and which processes could be asked."""

    pools: list[PoolRow] = field(default_factory=list)
    answered: set[tuple[str, int]] = field(default_factory=set)
    """Host and pid of each process that answered, whatever pools it has."""
    silent: set[int] = field(default_factory=set)
    """Processes that are alive and did not answer in time."""


@dataclass(frozen=True)
class Site:
    """What tells a site's pools from those of other sites that run as the same user.

    Two sites may share a folder, an alias ("default") and even a server: it is the database
    behind the alias that tells them apart.
    """

    databases: frozenset[tuple[str, str]]
    """Alias and address of each pooled database."""
    folders: tuple[StrPath, ...]
    """Where its processes publish: each in that of the database that it uses first."""
    sums_folder: StrPath | None
    """The first of the ``stats_dir`` options, None for the default folder."""

    @classmethod
    def of_settings(cls) -> Site:
        """Return the site that the settings of this process describe."""
        aliases = pooled_aliases()
        given = stats_dirs(aliases)
        folders: list[StrPath] = []
        for folder in given:
            # By name, since for the default collect_all() would look for processes that have
            # another view of the file system: those are no siblings.
            folders += socket_folder.BASES if folder is None else [folder]
        return cls(databases(aliases), tuple(folders), next(iter(given), None))

    @property
    def key(self) -> str:
        """A short name for it, the same in each of its processes."""
        return sha256(repr(sorted(self.databases)).encode()).hexdigest()[:16]

    def look(self, timeout: float) -> Look:
        """Ask every process for its pools; no database is asked, and no pool is used.

        Args:
            timeout: Seconds that the others have for their answer.
        """
        look, own = self.look_at_own(), process_report([])
        if self.folders and socket_folder.available():
            found = collect_all(self.folders, timeout, uid=os.geteuid())
            look.silent.update(found.silent)
            for report in found.reports:
                # Its own answer came through its socket too, a moment later.
                if (report.host, report.pid) != (own.host, own.pid):
                    self._add(look, report)
        return look

    def look_at_own(self) -> Look:
        """Look at the pools of this process alone."""
        look = Look()
        self._add(look, process_report(registry.snapshots()))
        return look

    def _add(self, look: Look, report: ProcessReport) -> None:
        look.answered.add((report.host, report.pid))
        for ours in of_site([report], self.databases):
            look.pools += [PoolRow(ours, pool) for pool in ours.pools]


def own_pools() -> list[PoolRow]:
    """Return the pools of this process alone, those of other sites' databases too."""
    report = process_report(registry.snapshots())
    return [PoolRow(report, pool) for pool in report.pools]
