"""One run of the command: the processes that it reaches, and the orders that it gives them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured

from django_pooled.poolstats.processes.collect import collect_all
from django_pooled.poolstats.rows import PoolRow
from django_pooled.poolstats.site import Site
from django_pooled.poolstats.sources import chosen_aliases, pooled_aliases, stats_dirs
from django_pooled.stats.orders import Order

if TYPE_CHECKING:
    from collections.abc import Sequence

    from django_pooled.poolstats.processes.collect import Collection
    from django_pooled.stats.orders import Answer, Verb
    from django_pooled.stats.snapshot import ProcessReport
    from django_pooled.stats.socket_folder import StrPath

__all__ = ["Operator", "Reply"]


@dataclass
class Reply:
    """What the processes answered to one order."""

    collection: Collection
    aliases: list[str] | None
    """The databases that it was for; None for all of the site."""
    pid: int | None
    """The process that it was for; None for all of the site."""

    @property
    def rows(self) -> list[PoolRow]:
        """The pools that the order was for, by process."""
        return [
            PoolRow(report, pool)
            for report in self.collection.reports
            for pool in report.pools
            if self.aliases is None or pool.alias in self.aliases
        ]

    @property
    def too_old(self) -> list[ProcessReport]:
        """The processes that take no orders, since they run an earlier version."""
        return [
            report
            for report in self.collection.reports
            if report.order is None and self._has(report)
        ]

    @property
    def refused(self) -> list[tuple[ProcessReport, str]]:
        """The processes that refused the order as a whole, and why."""
        return [
            (report, report.order.refusal)
            for report in self.collection.reports
            if report.order is not None and report.order.refusal and self._has(report)
        ]

    @property
    def silent(self) -> list[int]:
        """The processes that did not answer."""
        return self.collection.silent

    def answer(self, row: PoolRow) -> Answer | None:
        """Return what became of the order in one pool; None if it has obeyed nothing."""
        answers = row.process.order.answers if row.process.order is not None else []
        return next((answer for answer in answers if answer.pool == row.pool.id), None)

    def _has(self, report: ProcessReport) -> bool:
        return any(row.process is report for row in self.rows)


class Operator:
    """Gives orders to the processes of a site.

    Args:
        aliases: Keys of the databases whose pools are steered; none for all that are pooled.
        pid: The one process to steer; None for all.
        folder: Where the processes publish; None for what the settings say.
        uid: The user that runs the site; None for the current one, or for root all of them.
        timeout: Seconds that the processes have for their answer.

    Raises:
        ImproperlyConfigured: There is no such alias, it is not pooled, or it publishes nothing.
    """

    def __init__(
        self,
        aliases: Sequence[str] = (),
        *,
        pid: int | None = None,
        folder: StrPath | None = None,
        uid: int | None = None,
        timeout: float = 1.0,
    ) -> None:
        pooled = pooled_aliases()
        for alias in aliases:
            chosen_aliases(alias, pooled)
        if not pooled:
            raise ImproperlyConfigured('No entry of DATABASES uses ENGINE = "django_pooled".')
        self.aliases: list[str] = list(aliases) or pooled
        self.site: Site = Site.of_settings(pooled)
        self._chosen = list(aliases) or None
        self._folders = [folder] if folder is not None else stats_dirs(self.aliases)
        if not self._folders:
            raise ImproperlyConfigured(
                'OPTIONS["pool"]["stats_dir"] is False: the processes can\'t be reached.'
            )
        self._pid = pid
        self._uid = uid
        self._timeout = timeout
        self._token = os.urandom(8).hex()

    def look(self) -> Reply:
        """Ask for the state of the pools; nothing is changed."""
        return self.give("look")

    def give(self, verb: Verb, *, own: bool = True, **values: Any) -> Reply:
        """Give an order to all processes that can be reached, and return what became of it.

        Args:
            verb: The order.
            own: Whether it bears the token of this run; a "resume" without ends any pause.
            values: More of the order.
        """
        order = Order(
            verb,
            self.site.key,
            databases={alias: self.site.server(alias) for alias in self.aliases},
            aliases=self._chosen,
            token=self._token if own else "",
            stands=verb == "pause" and self._pid is None,
            **values,
        )
        collection = collect_all(
            self._folders,
            self._timeout,
            uid=self._uid,
            site=self.site,
            order=order.encoded(),
            only=self._pid,
        )
        return Reply(collection, self._chosen, self._pid)
