"""What an operator may have a pool do while it runs: pause, resume, drain, resize, count."""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING
from weakref import WeakMethod

from django_pooled.diagnostics.log_fields import event_fields
from django_pooled.stats.orders import REFUSED, Answer, OrderRefused

from .drain import Drain
from .pause import Pause

if TYPE_CHECKING:
    from django_pooled.stats.counters import Record
    from django_pooled.stats.orders import Order

    from .checkouts import Checkouts
    from .connector import Connector
    from .queue import RecoveringPool

__all__ = ["Steering"]

logger = logging.getLogger("django_pooled.pool")

NEVER = float("inf")


class Steering:
    """Obeys the orders to one pool, and logs who gave them.

    Orders come from the thread of the process's socket, one after another. None of them waits for
    a connection, a user or the server: what takes time is begun, and the pool's snapshot tells how
    far it is.

    Args:
        alias: The pool's alias.
        queue: Its connections.
        record: Its counts.
        connector: Has counted the connects that failed.
        checkouts: Which connections are in use.
    """

    def __init__(
        self,
        alias: str,
        queue: RecoveringPool,
        record: Record,
        connector: Connector,
        checkouts: Checkouts,
    ) -> None:
        self._alias = alias
        self._queue = queue
        self._record = record
        self._connector = connector
        self._checkouts = checkouts
        self._drain = Drain(alias, queue)
        self._begun: Pause | None = None  # the last pause, until it is logged that it has ended
        self._timer_at = NEVER  # when the next timer is due

    @property
    def pause(self) -> Pause | None:
        """The pause under way."""
        return self._queue.pause

    @property
    def to_replace(self) -> int | None:
        """Connections that a drain has to replace still; None without one."""
        return self._drain.left

    def obey(self, order: Order, by: str) -> Answer:
        """Obey an order, or say why not.

        Args:
            order: The order.
            by: Who gives it, for the log.
        """
        try:
            outcome, sentence = self._obey(order, by)
        except OrderRefused as refused:
            outcome, sentence = REFUSED, str(refused)
            logger.warning(
                "pool %r: %s was refused: %s (by %s)",
                *(self._alias, order.verb, sentence, by),
                extra=event_fields(
                    "order_refused", alias=self._alias, by=by, order=order.verb, reason=sentence
                ),
            )
        return Answer(self._alias, self._record.id, outcome, sentence)

    def _obey(self, order: Order, by: str) -> tuple[str, str]:
        if order.verb == "pause":
            return self._paused(order, by)
        if order.verb == "resume":
            return self._resumed(order, by)
        if order.verb == "drain":
            return self._draining(by)
        if order.verb == "resize":
            return self._resized(order, by)
        if order.verb == "reset-stats":
            return self._counted_anew(by)
        if order.verb == "look":
            return "seen", ""
        raise OrderRefused(f"this process does not know how to {order.verb}")

    def _paused(self, order: Order, by: str) -> tuple[str, str]:
        before = self._queue.pause
        if before is not None and before.token != order.token:
            raise OrderRefused(
                f"it is paused by {before.by} already, for {before.left:.0f} s more: resume it "
                "first, or wait"
            )
        if before is None and order.renews:
            raise OrderRefused("it has resumed meanwhile")
        if not order.seconds:
            raise OrderRefused("a pause needs its seconds")
        pause = Pause(monotonic() + order.seconds, by, order.token)
        self._queue.pause = self._begun = pause
        if pause.until < self._timer_at:
            self._set_timer(pause)
        if before is not None:
            return "extended", f"paused for {order.seconds:g} s more"
        logger.warning(
            "pool %r: paused: checkouts wait, for %g s at most (by %s)",
            *(self._alias, order.seconds, by),
            extra=event_fields("pool_paused", alias=self._alias, by=by, seconds=order.seconds),
        )
        return "paused", f"paused for {order.seconds:g} s"

    def _set_timer(self, pause: Pause) -> None:
        self._timer_at = pause.until
        # A moment later, so that its time is over by then.
        self._queue.call_after(pause.left + 0.01, WeakMethod(self._resume_in_time))

    def _resume_in_time(self) -> None:
        self._timer_at, pause = NEVER, self._begun
        if pause is not None and pause.left:
            # It was made to last longer.
            self._set_timer(pause)
        elif pause is not None:
            # A waiter may have ended it already.
            self._begun = None
            self._queue.end_pause_in_time()
            self._log_resumed("itself, since the time of its pause is over")

    def _resumed(self, order: Order, by: str) -> tuple[str, str]:
        pause = self._queue.pause
        if pause is None:
            return "running", "it was not paused"
        if order.token not in ("", pause.token):
            raise OrderRefused(f"it is paused by {pause.by}, for {pause.left:.0f} s more")
        self._queue.pause = self._begun = None
        self._log_resumed(by)
        return "resumed", "resumed"

    def _log_resumed(self, by: str) -> None:
        logger.warning(
            "pool %r: resumed (by %s)",
            *(self._alias, by),
            extra=event_fields("pool_resumed", alias=self._alias, by=by),
        )

    def _draining(self, by: str) -> tuple[str, str]:
        number = self._drain.begin()
        logger.warning(
            "pool %r: draining: %d connections are replaced as they come back (by %s)",
            *(self._alias, number, by),
            extra=event_fields("pool_draining", alias=self._alias, by=by, connections=number),
        )
        return "draining", f"{number} connections to replace"

    def _resized(self, order: Order, by: str) -> tuple[str, str]:
        sizes = order.min_size, order.max_size
        if not 0 <= order.min_size <= order.max_size or not order.max_size:
            raise OrderRefused(f"min_size {sizes[0]} and max_size {sizes[1]} do not fit together")
        queue = self._queue
        if order.max_size < queue.smallest:
            raise OrderRefused(f"its lanes have to have {queue.smallest} connections (lanes)")
        before = queue.min_size, queue.max_size
        queue.set_sizes(*sizes)
        self._drain.shrink()
        what = "resized: min_size {}, max_size {}, before {} and {}".format(*sizes, *before)
        logger.warning(
            "pool %r: %s (by %s)",
            *(self._alias, what, by),
            extra=event_fields(
                "pool_resized", alias=self._alias, by=by, min_size=sizes[0], max_size=sizes[1]
            ),
        )
        return "resized", what

    def _counted_anew(self, by: str) -> tuple[str, str]:
        self._checkouts.count_anew(self._connector.failures)
        logger.warning(
            "pool %r: counts from 0 again (by %s)",
            *(self._alias, by),
            extra=event_fields("stats_reset", alias=self._alias, by=by),
        )
        return "reset", "counts from 0 again"
