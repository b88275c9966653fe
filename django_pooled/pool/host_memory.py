"""What each address of a server last was: the order in which to try them, and when again."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

import psycopg

from django_pooled.diagnostics.log_fields import event_fields
from django_pooled.diagnostics.redaction import told

from .backoff import Backoff
from .connect_errors import is_wrong_kind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .addresses import Address

__all__ = ["DELAY", "MOST", "SILENT_AFTER", "HostMemory", "Turn"]

logger = logging.getLogger("django_pooled.pool")

DELAY = 0.25
"""Seconds after which the next address is tried beside one that has not answered yet: the
"connection attempt delay" of RFC 8305. Twice the time of the last login there, if that is longer.
"""

SILENT_AFTER = 1.0
"""Seconds after which an address is not waited for any more, where another has refused: that may
serve the next time. Likewise longer where a login takes longer."""

_RETRIES = Backoff(initial=1.0, maximum=30.0)
"""Waits before an address that failed is tried again, while another serves."""


MOST = 100
"""Addresses that are remembered; with more, those that a name has no more are forgotten."""


@dataclass
class _Record:
    took: float = 0.0
    """Seconds of the last login there."""
    failures: int = 0
    """In a row; 0 for an address that is good, or not known."""
    failed_at: float = 0.0
    try_again_at: float = 0.0
    silent: bool = False
    """Whether it has given no answer in time, and is not waited for."""
    under_way: int = 0
    """Attempts that it has not answered yet, and that are not waited for."""


class Turn(NamedTuple):
    """An address to try, and how long to wait for it."""

    address: Address
    delay: float
    """Seconds after which the next one is tried too."""
    patience: float
    """Seconds after which it counts as silent."""


class HostMemory:
    """What one pool knows of its addresses; by their text, host and target_session_attrs.

    Args:
        alias: The pool's alias, for log lines.
    """

    def __init__(self, alias: str) -> None:
        self._alias = alias
        self._lock = threading.Lock()  # guards both below
        self._records: dict[Address, _Record] = {}
        self._told: dict[tuple[str, str], float] = {}  # hosts that fail by the log, since when

    def turns(self, addresses: Iterable[Address]) -> tuple[list[Turn], list[Address]]:
        """Return the order in which to try them, and those whose answer is still outstanding.

        Good and unknown ones come first, in the order of the settings, and are all that is needed
        as a rule. Those that failed come last; when it is time to try one again, it is tried
        beside the first good one, which no connection has to wait for.
        """
        now = monotonic()
        beside: list[Turn] = []
        good: list[Turn] = []
        bad: list[Turn] = []
        outstanding: list[Address] = []
        with self._lock:
            known = [(each, self._record(each)) for each in addresses]
            self._forget_others(dict(known))
            all_silent = all(record.silent for _, record in known)
            any_good = any(not record.failures for _, record in known)
            for address, record in known:
                if record.under_way and not all_silent:
                    outstanding.append(address)
                elif not record.failures:
                    good.append(_turn(address, record))
                elif any_good and now >= record.try_again_at:
                    # Not by each of those that connect side by side.
                    record.try_again_at = now + _RETRIES.initial
                    beside.append(Turn(address, 0.0, 0.0))
                else:
                    bad.append(_turn(address, record))
        return beside + good + bad, outstanding

    def succeeded(self, address: Address, took: float) -> None:
        """A login there took so many seconds."""
        with self._lock:
            record = self._record(address)
            record.took, record.failures, record.silent = took, 0, False
            since = self._told.pop((address.host, address.port), None)
        if since is not None:
            outage = monotonic() - since
            logger.warning(
                "pool %r: %s serves again after %.1f s",
                *(self._alias, address, outage),
                extra=event_fields(
                    "host_serves", alias=self._alias, host=str(address), outage=outage
                ),
            )

    def failed(self, address: Address, error: BaseException, began: float) -> None:
        """An attempt there, begun at that monotonic moment, has failed."""
        now = monotonic()
        with self._lock:
            record = self._record(address)
            record.silent = isinstance(error, psycopg.errors.ConnectionTimeout)
            self._note_failure(record, began, now)

    def left(self, address: Address, began: float, *, silent: bool) -> None:
        """An attempt there goes on, and is not waited for any more.

        Args:
            address: Where.
            began: The monotonic moment at which it began.
            silent: Whether it should have answered by now.
        """
        with self._lock:
            record = self._record(address)
            record.under_way += 1
            if silent:
                record.silent = True
                self._note_failure(record, began, monotonic())

    def ended(self, address: Address) -> None:
        """An attempt has ended that had been left."""
        with self._lock:
            self._record(address).under_way -= 1

    def passed_over(self, address: Address, instead: Address, error: BaseException) -> None:
        """A connection was opened elsewhere, after it had failed; told once, in the log."""
        host = (address.host, address.port)
        # A standby is what it is, and a name may have addresses that never serve (::1).
        if is_wrong_kind(error) or host == (instead.host, instead.port):
            return
        with self._lock:
            is_news = host not in self._told
            self._told.setdefault(host, monotonic())
        if is_news:
            logger.warning(
                "pool %r: %s does not serve, connected to %s: %s",
                *(self._alias, address, instead, told(error)),
                extra=event_fields(
                    "host_failed", alias=self._alias, host=str(address), error=error
                ),
            )

    def _note_failure(self, record: _Record, began: float, now: float) -> None:
        if not record.failures or began >= record.failed_at:
            # Attempts side by side that meet the same are one failure.
            record.failures += 1
            record.failed_at = now
        record.try_again_at = now + _RETRIES.wait(record.failures)

    def _forget_others(self, present: dict[Address, _Record]) -> None:
        if len(self._records) > MOST:
            outstanding = {key: it for key, it in self._records.items() if it.under_way}
            self._records = {**outstanding, **present}

    def _record(self, address: Address) -> _Record:
        return self._records.setdefault(address, _Record())


def _turn(address: Address, record: _Record) -> Turn:
    if record.silent:
        return Turn(address, 0.0, 0.0)
    usual = 2 * record.took
    return Turn(address, max(DELAY, usual), max(SILENT_AFTER, usual))
