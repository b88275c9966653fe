"""Waits between attempts; the only module that imports tenacity.

It does so on use: the system check that says that tenacity is missing has to run without it, and a
process that connects to nothing has no use for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from .seconds import is_seconds

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from tenacity import RetryCallState

__all__ = ["Backoff", "prepare", "retry_until"]

T = TypeVar("T")


@dataclass(frozen=True)
class Backoff:
    """Exponential backoff with a cap.

    The wait after attempt n is drawn from 0 to ``min(maximum, initial * 2 ** (n - 1))``
    seconds ("full jitter"), or is exactly that bound when ``jitter`` is false.

    Args:
        initial: Bound of the first wait, in seconds.
        maximum: Cap of every wait, in seconds.
        jitter: Whether waits are random; without it all processes try at the same moment.

    Raises:
        TypeError: A value of a wrong type.
        ValueError: Seconds that cannot be waited for.
    """

    initial: float = 0.1
    maximum: float = 0.75
    jitter: bool = True

    def __post_init__(self) -> None:
        for name in ("initial", "maximum"):
            seconds = getattr(self, name)
            expected = f"Backoff's {name} is {seconds!r}; expected a number of seconds, 0 or more"
            if not isinstance(seconds, int | float) or isinstance(seconds, bool):
                raise TypeError(expected)
            if not is_seconds(seconds) or seconds < 0:
                raise ValueError(expected)
        if not isinstance(self.jitter, bool):
            raise TypeError(f"Backoff's jitter is {self.jitter!r}; expected True or False")

    def wait(self, attempt: int) -> float:
        """Return the seconds to wait after attempt number *attempt* (counted from 1)."""
        from tenacity import RetryCallState, Retrying, wait_exponential, wait_random_exponential

        state = RetryCallState(Retrying(), fn=None, args=(), kwargs={})
        state.attempt_number = attempt
        kind = wait_random_exponential if self.jitter else wait_exponential
        return kind(multiplier=self.initial, max=self.maximum)(state)


def prepare() -> None:
    """Import tenacity before anything has failed, perhaps for want of file descriptors."""
    import tenacity  # noqa: F401


def retry_until(
    stopped: threading.Event,
    attempt: Callable[[], T],
    *,
    wait: Callable[[int, BaseException], float],
    worth_retrying: Callable[[BaseException], bool],
) -> T:
    """Call *attempt* until it returns, until it fails for good, or until *stopped* is set.

    Args:
        stopped: Ends the attempts; setting it also cuts a wait short.
        attempt: The work; only connecting and checking out belong here, never a query.
        wait: Given the number of a failed attempt (counted from 1) and its error, the seconds to
            wait before the next.
        worth_retrying: Given the error of a failed attempt, whether another may succeed.

    Raises:
        The error of the last attempt.
    """
    from tenacity import Retrying, retry_if_exception, stop_when_event_set
    from tenacity.nap import sleep_using_event

    def seconds(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        assert error is not None, "tenacity asks after an attempt that failed"
        return wait(state.attempt_number, error)

    return Retrying(
        stop=stop_when_event_set(stopped),
        wait=seconds,
        retry=retry_if_exception(worth_retrying),
        sleep=sleep_using_event(stopped),
        reraise=True,
    )(attempt)
