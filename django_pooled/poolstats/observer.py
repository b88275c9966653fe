"""Takes overviews: asks the processes and the databases of the settings at the same time."""

from __future__ import annotations

from time import monotonic, sleep
from typing import TYPE_CHECKING

from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from django_pooled.diagnostics.redaction import told
from django_pooled.poolstats.processes.collect import collect_all
from django_pooled.poolstats.server.view import ServerProbe
from django_pooled.stats.socket_folder import this_user

from .overview import Overview
from .past import Past
from .site import Site
from .sources import chosen_aliases, pooled_aliases, stats_dirs

if TYPE_CHECKING:
    from django_pooled.poolstats.processes.collect import Collection
    from django_pooled.poolstats.server.view import ServerView
    from django_pooled.stats.socket_folder import StrPath

__all__ = ["Observer"]

DATABASE_TIMEOUT = 3.0
"""Seconds that the databases have at least: one that is far away connects slowly."""

LOOK = 0.2
"""Seconds after which processes are asked again for the sessions of a full server."""


class Observer:
    """Looks at all pools of a site; it keeps its connections to the databases for the next look.

    Args:
        alias: Key of the one database to look at, None for all that are pooled.
        folder: Where the processes publish; None for what the settings say.
        uid: The user that runs the site; None for the current one, or for root all of them.
        timeout: Seconds that the processes have for their answer.
        every_site: Whether the pools of other sites, and of tests, are wanted too.

    Raises:
        ImproperlyConfigured: There is no such alias, or it is not pooled.
    """

    def __init__(
        self,
        alias: str | None = None,
        *,
        folder: StrPath | None = None,
        uid: int | None = None,
        timeout: float = 1.0,
        every_site: bool = False,
    ) -> None:
        self.problems: list[str] = []
        self._alias = alias
        self._uid = uid
        self._timeout = timeout
        self._probes: list[ServerProbe] = []
        pooled = pooled_aliases(self.problems)
        chosen = chosen_aliases(alias, pooled)
        if not pooled:
            self.problems.append(_without_pool())
        self._site = Site.of_settings(pooled)
        self._every_site = every_site
        self._folders = self._stats_dirs(chosen) if folder is None else [folder]
        for name in chosen:
            try:
                self._probes.append(ServerProbe(connections[name]))
            except ImproperlyConfigured as error:
                self.problems.append(f'The database "{name}" was not asked: {told(error)}')

    def take(self) -> Overview:
        """Ask processes and databases; it takes ``timeout`` seconds, or 3 for slow databases."""
        patience = max(DATABASE_TIMEOUT, self._timeout)
        deadline = monotonic() + patience
        for probe in self._probes:
            probe.start(patience)
        collection = self._collection()
        collection.problems[:0] = self.problems
        servers = [probe.wait(deadline - monotonic()) for probe in self._probes]
        if any(server.is_full for server in servers):
            # It lets no more in, so that the processes have to tell who is there.
            collection = collection.updated(self._holders(deadline))
            collection.problems[:0] = self.problems
        return self._overview(collection, servers)

    def _holders(self, deadline: float) -> Collection:
        """Ask for the sessions of full servers, until a process knows them."""
        while True:
            collection = self._collection(sessions=True)
            pools = [pool for report in collection.reports for pool in report.pools]
            is_known = any(pool.sessions_age is not None for pool in pools)
            if is_known or not pools or monotonic() + LOOK >= deadline:
                return collection
            sleep(LOOK)

    def past(self, seconds: float) -> Past:
        """Ask the processes what they remember; no database is asked.

        Args:
            seconds: How far back to look.
        """
        return Past(self._overview(self._collection(history=True), []), seconds)

    def _collection(self, *, history: bool = False, sessions: bool = False) -> Collection:
        site = None if self._every_site else self._site
        return collect_all(
            self._folders,
            self._timeout,
            uid=self._uid,
            site=site,
            history=history,
            sessions=sessions,
        )

    def _overview(self, collection: Collection, servers: list[ServerView]) -> Overview:
        user = this_user() if self._uid is None else self._uid
        return Overview(collection, servers, self._alias, site=self._site, user=user)

    def close(self) -> None:
        """Close the connections to the databases."""
        for probe in self._probes:
            probe.close()

    def _stats_dirs(self, aliases: list[str]) -> list[StrPath | None]:
        folders = stats_dirs(aliases)
        if aliases and not folders:
            self.problems.append('OPTIONS["pool"]["stats_dir"] is False: nothing is published.')
        return folders if aliases else [None]


def _without_pool() -> str:
    engines = ", ".join(
        f'"{alias}" has "{entry["ENGINE"]}"' for alias, entry in connections.settings.items()
    )
    return (
        f'No entry of DATABASES uses ENGINE = "django_pooled": {engines}. If one does only while '
        f"the site runs, start the site."
    )
