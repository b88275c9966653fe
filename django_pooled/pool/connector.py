"""When a pool opens connections: at once while the server answers, else with a single probe."""

from __future__ import annotations

import logging
import threading
import traceback
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

from django_pooled.diagnostics.log_fields import event_fields
from django_pooled.diagnostics.redaction import scrub, told

from .backoff import prepare, retry_until
from .connect_errors import AttemptFailed, AttemptHung, is_permanent_refusal, is_server_full

if TYPE_CHECKING:
    from collections.abc import Callable

    from .backoff import Backoff

__all__ = ["LONGEST_WHEN_FULL", "LONGEST_WHEN_REFUSED", "Connector", "Waits"]

logger = logging.getLogger("django_pooled.pool")

T = TypeVar("T")

LONGEST_WHEN_FULL = 2.0
"""Cap of the waits while the server is full, in seconds, where the backoff's own is not longer.

A thousand pools make a third of the attempts that they make with 0.75, and a thread that waits for
2 seconds still gets one attempt: see benchmarks/results/fleet.md.
"""


LONGEST_WHEN_REFUSED = 2.0
"""Cap of the waits while each attempt meets the same answer, in seconds, likewise.

A wrong password, a check of the project that fails, a server that stays read-only: each attempt is
a session of the server, a line in its log, and a step towards a locked account.
"""


class Waits:
    """Waits between a probe's attempts: the backoff's, and longer ones while the server is full.

    An outage ends for all at once, and an early attempt is served early. A full server gets room
    for one connection at a time: early attempts win nothing, and each refusal costs it the start of
    a process. Refusals in a row are counted from the first, so that a server which is full for a
    moment, as after an outage, is asked as soon as ever. Failures of the project's own code, its
    check or its credentials, are waited out in the same way.

    Args:
        backoff: Waits after all other failures.
        longest_when_full: Cap of the others, in seconds.
    """

    def __init__(self, backoff: Backoff, longest_when_full: float = LONGEST_WHEN_FULL) -> None:
        self._backoff = backoff
        self._when_full = replace(backoff, maximum=max(backoff.maximum, longest_when_full))
        self._full = 0  # refusals in a row for want of room, or by the project

    def after(self, attempt: int, error: BaseException) -> float:
        """Return the seconds to wait after attempt number *attempt*, which failed with *error*."""
        if is_server_full(error) or isinstance(error, AttemptFailed):
            self._full += 1
            return self._when_full.wait(self._full)
        self._full = 0
        wait = self._backoff.wait(attempt)
        return max(wait, error.wait) if isinstance(error, AttemptHung) else wait


class Connector:
    """Opens connections for one pool, in the threads of the pool's workers.

    As long as attempts succeed they run side by side. After one that failed, or a connection
    that was lost, all others queue behind a single probe, which goes on with capped and
    jittered waits until it succeeds; then all go on at once. So a server that is away gets one
    attempt at a time from each pool, and none is late when it is back; a full one gets fewer.

    Args:
        name: The pool's alias, for log lines.
        backoff: Waits between the probe's attempts.
        patience: Seconds after which the probe ends if nobody waits for a connection.
        opened: Called after each connection that was opened, with the seconds that it took.
        credentials_change: Whether another attempt may bring other credentials: after the first
            refusal one is made at once, since a token may have expired on its way.
    """

    def __init__(
        self,
        name: str,
        backoff: Backoff,
        patience: float,
        opened: Callable[[float], None],
        credentials_change: bool = False,
    ) -> None:
        prepare()
        self.last_error: Exception | None = None
        self.last_error_at: float = 0.0
        self.connected_again_at: float | None = None
        """When an attempt succeeded after the last error; None if none has."""
        self.failures: int = 0
        self._name = name
        self._backoff = backoff
        self._patience = patience
        self._opened = opened
        self._credentials_change = credentials_change
        self._closing = threading.Event()
        # What attempts change, here and above, is guarded by the lock below, and read without it:
        # each is one assignment.
        self._trouble = False
        self._trouble_since = 0.0  # with trouble: the moment of the first failure
        self._suspected = False
        self._is_answered = True  # whether a server has answered the last attempt
        self._doubted_at = 0.0  # if not, or if suspected: since when
        self._when_refused = replace(backoff, maximum=max(backoff.maximum, LONGEST_WHEN_REFUSED))
        self._refusals = 0  # permanent ones since the last success
        self._refusal: Exception | None = None  # the last attempt's, if it was one
        self._try_again_at = 0.0  # with a refusal
        self._held_by: Exception | None = None
        self._held_until = 0.0
        self._turn = threading.Lock()  # held by the thread that probes
        self._counting = threading.RLock()  # guards the fields that attempts change

    def open(
        self,
        connect: Callable[[], T],
        wanted: Callable[[], bool],
        has_room: Callable[[], bool] = lambda: True,
    ) -> T:
        """Open one connection by *connect*, however long the server is away.

        Args:
            connect: Makes one attempt.
            wanted: Whether a thread waits for a connection.
            has_room: Whether it can be kept; late ones may have taken its place.

        Raises:
            Exception: The server's refusal, if waiting will not help; the last attempt's error,
                once the connector is closed or no thread waits any more.
        """
        began = monotonic()
        while True:
            if not (self._trouble or self._suspected):
                try:
                    return self._attempt(connect)
                except Exception as error:
                    if is_permanent_refusal(error) or self._closing.is_set():
                        raise
            with self._turn:
                self._refuse_needless(began, has_room)
                if self._trouble or self._suspected:
                    return self._probe(connect, wanted, has_room)

    def _refuse_needless(self, began: float, has_room: Callable[[], bool]) -> None:
        # In a frame of its own: that of open() is held by the error of its first attempt, and
        # would hold it in turn.
        error = self.trouble if not has_room() else None
        if self._refusal is not None and self.last_error_at >= began:
            # The server has answered while this thread waited for its turn.
            error = self._refusal
        if error is not None:
            raise error.with_traceback(None)

    def suspect(self) -> None:
        """A connection was lost: one attempt has to show that the server is there.

        Without this, ten lost connections are ten attempts before the first has failed.
        """
        # In this order: both are read without the lock.
        self._doubted_at, self._suspected = monotonic(), True

    @property
    def in_doubt_since(self) -> float | None:
        """The monotonic moment since which it is unknown whether the server is there.

        None if it has answered, be it that it is full or that it refuses the credentials.
        """
        return self._doubted_at if self._suspected or not self._is_answered else None

    def hold_off(self, error: Exception, times: int, at_least: float = 0.0) -> None:
        """Open none for a while: those that were opened last are of no use.

        Args:
            error: Says why.
            times: How many there were in a row.
            at_least: Seconds.
        """
        with self._counting:
            if not self._closing.is_set():
                self._held_by = error
            wait = max(at_least, self._when_refused.wait(max(1, times)))
            self._held_until = monotonic() + wait

    def go_on(self) -> None:
        """Those that are open are of use again."""
        if self._held_by is not None:
            with self._counting:
                self._held_by, self._held_until = None, 0.0

    @property
    def holds_off(self) -> bool:
        """Whether the connections that were opened last are of no use."""
        return self._held_by is not None

    def arrived(self, seconds: float) -> None:
        """Count a connection whose attempt had been given up."""
        self._succeeded(seconds)

    @property
    def trouble(self) -> Exception | None:
        """The error of the last attempt, if it failed; else why its connection was of no use."""
        return self.last_error if self._trouble else self._held_by

    @property
    def pause(self) -> float:
        """Seconds for which no attempt may be made, for any waiter; 0 for none.

        So that a wrong password does not cause a storm of logins. An outage needs no pause, since
        its probe waits between attempts.
        """
        refused_until = self._try_again_at if self._refusal is not None else 0.0
        return max(0.0, max(refused_until, self._held_until) - monotonic())

    def standing_refusal(self) -> Exception | None:
        """The last permanent refusal, as long as its pause lasts.

        Until then a new waiter that no connection can serve gets the same error at once.
        """
        return self._refusal if monotonic() < self._try_again_at else None

    def close(self) -> None:
        """End a probe under way, and every later one after a single attempt."""
        self._closing.set()
        with self._counting:
            # Its traceback's frames hold the connector, and thereby each other.
            self.last_error = self._refusal = self._held_by = None

    def _probe(
        self, connect: Callable[[], T], wanted: Callable[[], bool], has_room: Callable[[], bool]
    ) -> T:
        give_up_at = monotonic() + self._patience

        def worth_retrying(error: BaseException) -> bool:
            return (
                isinstance(error, Exception)
                and not is_permanent_refusal(error)
                and has_room()
                and (wanted() or monotonic() < give_up_at)
            )

        return retry_until(
            self._closing,
            lambda: self._attempt(connect),
            wait=Waits(self._backoff).after,
            worth_retrying=worth_retrying,
        )

    def _attempt(self, connect: Callable[[], T]) -> T:
        started = monotonic()
        try:
            try:
                connection = connect()
            except Exception as error:
                is_first = self._credentials_change and not self._refusals
                if not (is_first and is_permanent_refusal(error)):
                    raise
                connection = connect()
        except Exception as error:
            # A timed-out attempt's socket stays open in a cycle of the error and its frames,
            # until the garbage collector comes by.
            traceback.clear_frames(error.__traceback__)
            scrub(error)
            self._failed(error)
            raise
        self._succeeded(monotonic() - started)
        return connection

    def _succeeded(self, took: float) -> None:
        with self._counting:
            was_in_trouble = self._trouble
            self._trouble = self._suspected = False
            self._is_answered = True
            self._refusals, self._refusal = 0, None
            if was_in_trouble:
                self.connected_again_at = monotonic()
        if was_in_trouble:
            outage = monotonic() - self._trouble_since
            # As visible as its beginning: without it, a log tells of an outage that never ends.
            logger.warning(
                "pool %r: connected again after %.1f s",
                self._name,
                outage,
                extra=event_fields(
                    "connected_again", alias=self._name, seconds=took, outage=outage
                ),
            )
        self._opened(took)

    def _failed(self, error: Exception) -> None:
        with self._counting:
            # Attempts side by side fail together, and one of them is the first.
            is_news = not self._trouble
            if is_news:
                self._trouble_since = monotonic()
            is_answered = is_permanent_refusal(error) or is_server_full(error)
            if self._is_answered and not is_answered:
                self._doubted_at = monotonic()
            self._is_answered = is_answered
            # While there is trouble, one attempt goes ahead of the others in any case.
            self._suspected = self._suspected and not is_answered
            self.last_error_at, self.connected_again_at = monotonic(), None
            if not self._closing.is_set():
                self.last_error = error
            self.failures += 1
            self._trouble = True
            self._refusal = None
            if is_permanent_refusal(error):
                self._refusal = self.last_error
                self._refusals += 1
                wait = self._when_refused.wait(self._refusals)
                self._try_again_at = self.last_error_at + wait
        if is_news:
            logger.warning(
                "pool %r: cannot connect: %s",
                self._name,
                told(error),
                extra=event_fields("connect_failed", alias=self._name, error=error),
            )
