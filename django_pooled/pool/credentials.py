"""Credentials that are fetched, kept for a while, and fetched anew before they are over."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future
from random import uniform
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from django_pooled.diagnostics.log_fields import event_fields
from django_pooled.diagnostics.redaction import told

from .connect_errors import AttemptHung, is_mistake
from .time_limit import in_a_thread, over_within, start

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .time_limit import LeftBehind

__all__ = ["PATIENCE", "FetchedAnew", "KeptCredentials"]

logger = logging.getLogger("django_pooled.pool")

PATIENCE = 1.0
"""Seconds that a connect waits for new credentials where there are old ones, which may still do."""

_LONGEST_AFTER_A_FAILURE = 10.0
"""Seconds after which a call ahead is tried again, at most."""


_SHORTEST = 0.1
"""Seconds between two looks whether it is time."""


class FetchedAnew:
    """Connection parameters with credentials that are fetched for each connection.

    Args:
        fetch: Returns the parameters.
    """

    def __init__(self, fetch: Callable[[], Mapping[str, Any]]) -> None:
        self._fetch = fetch

    def __call__(self) -> Mapping[str, Any]:
        """Return the parameters for a connection."""
        return self._fetch()

    def refused(self, parameters: Mapping[str, Any], since: float) -> bool:
        """Take note of a refusal; tell whether others than *parameters* are to be had at once."""
        return False


class _Kept(NamedTuple):
    parameters: Mapping[str, Any]
    fetched_at: float
    due_at: float
    until: float


class _Call(NamedTuple):
    began: float
    future: Future[_Kept]


class KeptCredentials(FetchedAnew):
    """Connection parameters with credentials that are kept for *lifetime* seconds.

    One call at a time fetches them, for all that wait. In the last quarter of their lifetime they
    are fetched ahead, unless no connection has been opened with them. One call that hangs is given
    up, and overtaken by another. Where a call fails or takes long, the last ones are used, until
    the server refuses them.

    Args:
        alias: The pool's alias, for log lines and the names of threads.
        fetch: Returns the parameters.
        lifetime: Seconds for which they are kept.
        limit: Seconds after which a call is given up.
        left_behind: Counts the calls that never end.
    """

    def __init__(
        self,
        alias: str,
        fetch: Callable[[], Mapping[str, Any]],
        lifetime: float,
        limit: float,
        left_behind: LeftBehind,
    ) -> None:
        super().__init__(fetch)
        self._alias = alias
        self._lifetime = lifetime
        self._limit = limit
        self._left_behind = left_behind
        self._lock = threading.Lock()  # guards all below but the next
        self._is_used = False  # whether a connect has asked for those that are kept
        self._kept: _Kept | None = None
        self._call: _Call | None = None  # the last one, until it is known to be over
        self._is_told = False  # whether the log says that calls fail

    def __call__(self) -> Mapping[str, Any]:
        """Return the parameters for a connection.

        Raises:
            AttemptHung: The call takes too long, and there are no older ones that may do.
            BaseException: The call's own, likewise.
        """
        with self._lock:
            kept = self._kept
        try:
            if kept is None or monotonic() >= kept.until:
                kept = self._fetched(None if kept is None else PATIENCE)
        except Exception as error:
            if kept is None or is_mistake(error):
                raise
            self._tell(error)
        # After the call, which begins a new time of use.
        self._is_used = True
        return kept.parameters

    def refused(self, parameters: Mapping[str, Any], since: float) -> bool:
        """Forget credentials that the server has refused.

        Args:
            parameters: With which a login was tried.
            since: The monotonic moment at which that attempt began.

        Returns:
            Whether they were older than the attempt: newer ones may do.
        """
        with self._lock:
            kept = self._kept
            if kept is None or kept.parameters is not parameters:
                return True  # Others have found that out, or fetched new ones.
            # A call that has begun before may bring the same.
            self._kept = self._call = None
            return kept.fetched_at < since

    def fetch_ahead(self) -> float:
        """Fetch the credentials anew, if it is time; return the seconds until the next look."""
        with self._lock:
            kept, is_used = self._kept, self._is_used
        if kept is None or not is_used:
            return max(_SHORTEST, self._lifetime / 4)
        if kept.due_at > monotonic():
            return max(_SHORTEST, kept.due_at - monotonic())
        try:
            kept = self._fetched()
        except BaseException as error:
            # It must not end a thread of the pool's, whatever it is.
            self._tell(error)
            return max(_SHORTEST, min(_LONGEST_AFTER_A_FAILURE, self._lifetime / 10))
        return max(_SHORTEST, kept.due_at - monotonic())

    def _fetched(self, patience: float | None = None) -> _Kept:
        """Wait for the call under way, or for a new one.

        Args:
            patience: Seconds after its beginning from which the call is not waited for.
        """
        with self._lock:
            call = self._call
            hangs = call is not None and monotonic() - call.began >= self._limit
        if call is not None and hangs:
            self._give_up(call)
        with self._lock:
            call, is_new = self._call, False
            if call is None or call.future.done():
                call, is_new = _Call(monotonic(), Future()), True
                self._call = call
        if is_new:
            start(self._fetch_and_keep, in_a_thread(f"{self._alias}-credentials"), call.future)
        seconds = min(self._limit, self._limit if patience is None else patience)
        if not over_within(call.future, call.began + seconds - monotonic()):
            wait = self._give_up(call) if patience is None else 0.0
            raise AttemptHung(f"given up after {seconds:g} s of waiting for the credentials", wait)
        return call.future.result()

    def _give_up(self, call: _Call) -> float:
        """Overtake a call that hangs; return the seconds to wait before."""
        with self._lock:
            if self._call is not call:
                return 0.0
            self._call = None
        return self._left_behind.add(call.future, self._limit)

    def _fetch_and_keep(self) -> _Kept:
        began = monotonic()
        parameters = self._fetch()
        # From the beginning of the call: the service may have made them then.
        kept = _Kept(
            parameters,
            fetched_at=began,
            due_at=began + uniform(0.7, 0.8) * self._lifetime,
            until=began + self._lifetime,
        )
        with self._lock:
            # Not those of a call that has been overtaken.
            if self._kept is None or self._kept.fetched_at <= began:
                self._kept, self._is_used, self._is_told = kept, False, False
        return kept

    def _tell(self, error: BaseException) -> None:
        with self._lock:
            is_news, self._is_told = not self._is_told, True
        if is_news:
            logger.warning(
                "pool %r: no new credentials, the last ones are used: %s",
                *(self._alias, told(error)),
                extra=event_fields("credentials_failed", alias=self._alias, error=error),
            )
