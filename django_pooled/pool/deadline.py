"""One deadline for all that a request does in the database, on top of each part's own limits."""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from functools import wraps
from inspect import isasyncgenfunction, isgeneratorfunction
from math import inf
from threading import Event
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, TypeVar, cast

from asgiref.sync import iscoroutinefunction

from .seconds import is_time_limit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextvars import Token

__all__ = [
    "GRACE",
    "Deadline",
    "call_with_grace",
    "current",
    "deadline",
    "ends_at",
    "grace",
    "retry_deadline",
]

P = ParamSpec("P")
R = TypeVar("R")

GRACE = 1.0
"""Seconds beyond the deadline for what ends something: a cancelled statement, COMMIT, ROLLBACK.

Each takes milliseconds on a server that answers. With none, a COMMIT that is sent in time would
often have an unknown outcome, and a connection be closed that could be kept.
"""


class Deadline:
    """The moment at which the work of a request ends; threads that work for it may share one.

    No lock guards it: what changes is one assignment, or one operation on the list of sleepers. A
    sleeper looks at the time after it has joined them, and who ends it wakes them after that.

    Args:
        seconds: From now on.
        outer: The deadline around it, which ends it too.
        is_gone: Tells whether nobody waits for the result any more; asked while a statement is
            under way, or a connection is waited for.
    """

    __slots__ = ("_outer", "_reason", "_sleepers", "_until", "is_gone", "is_lifted")

    are_over: ClassVar[bool] = False
    """Whether those that begin have ended already; `django_pooled.testing` sets it."""

    def __init__(
        self,
        seconds: float,
        outer: Deadline | None = None,
        is_gone: Callable[[], bool] | None = None,
    ) -> None:
        self._until = monotonic() + seconds
        self._outer = outer
        self._reason = f"the deadline of {seconds:g} s ended"
        self._sleepers: list[Callable[[], None]] = []
        self.is_gone: Callable[[], bool] | None = is_gone or (outer.is_gone if outer else None)
        self.is_lifted: bool = False

    @classmethod
    def begin(cls, seconds: float, is_gone: Callable[[], bool] | None = None) -> Deadline:
        """Make one for a block or a request, within the present one."""
        made = cls(seconds, _present(), is_gone)
        if cls.are_over:
            made._until = monotonic()
        return made

    @property
    def until(self) -> float:
        """The monotonic instant; the earliest of those around it."""
        return self._until if self._outer is None else min(self._until, self._outer.until)

    @property
    def left(self) -> float:
        """Seconds until then; below 0 afterwards."""
        return self.until - monotonic()

    @property
    def has_ended(self) -> bool:
        """Whether it is over."""
        return monotonic() >= self.until

    @property
    def reason(self) -> str:
        """Why it ends, in words."""
        outer = self._outer
        return self._reason if outer is None or self._until <= outer.until else outer.reason

    def lift(self) -> None:
        """Have it bound nothing any more, where code still has it as the present one."""
        self.is_lifted = True
        self._until = inf
        self.is_gone = None if self._outer is None else self._outer.is_gone

    def end(self, reason: str) -> None:
        """End it now, from any thread: a statement that is under way is cancelled on the server.

        A thread that waits for a connection, or sleeps between two attempts, wakes.
        """
        if not self.has_ended:
            # In this order: the other thread looks at the time first.
            self._reason, self._until = reason, monotonic()
            for wake in list(self._sleepers):
                wake()

    def end_if_gone(self) -> None:
        """End it if nobody waits for the result any more, as far as that can be known."""
        if self.is_gone is not None and self.is_gone():
            self.end("the client has gone")

    def begin_wait(self) -> None:
        """A thread begins to wait for a connection, or for another attempt, under this deadline."""

    @contextmanager
    def waking(self, wake: Callable[[], None]) -> Iterator[None]:
        """Have *wake* called in this block if the deadline is ended early, by any thread.

        It may be called after the block as well, and more than once.
        """
        # Those around it end it too.
        deadlines: list[Deadline] = []
        deadline: Deadline | None = self
        while deadline is not None:
            deadlines.append(deadline)
            deadline = deadline._outer
        try:
            for each in deadlines:
                each._sleepers.append(wake)
                each.begin_wait()
            if self.has_ended:
                wake()
            yield
        finally:
            for each in deadlines:
                with suppress(ValueError):
                    each._sleepers.remove(wake)

    def sleep(self, seconds: float) -> None:
        """Sleep, and wake if the deadline is ended early."""
        woken = Event()
        with self.waking(woken.set):
            woken.wait(seconds)


current: ContextVar[Deadline | None] = ContextVar("django_pooled.deadline", default=None)
"""The deadline of the running code; None without one."""


def _present() -> Deadline | None:
    """Return the present deadline; not one whose block was left elsewhere."""
    present = current.get()
    while present is not None and present.is_lifted:
        present = present._outer
    return present


def ends_at() -> float:
    """The monotonic instant of the present deadline; infinite without one."""
    present = current.get()
    return inf if present is None else present.until


class deadline(AbstractContextManager[None]):  # noqa: N801 - used as a function
    """Let what the database does in this block, or in each call of a function, end in time.

    It bounds, together, the wait for a connection, the attempts of ``retry_transaction`` with the
    waits between them, and the server's work. After it no statement is sent, and the one under way
    is cancelled on the server. Of nested ones the earliest counts. It follows the code into
    ``sync_to_async`` and ``asyncio.to_thread``, and not into threads that the code starts. ::

        with deadline(5.0):
            ...

        @deadline(5.0)  # of a function, or of a coroutine function: anew for each call
        def view(request): ...

    Args:
        seconds: From the beginning of the block or the call.

    Raises:
        TypeError: *seconds* is no number.
        ValueError: *seconds* is not above 0.
        DeadlineExceeded: In the block: a statement was cancelled, or not sent.
        CheckoutTimeout: In the block: no connection became available in time.
    """

    def __init__(self, seconds: float) -> None:
        if not isinstance(seconds, int | float) or isinstance(seconds, bool):
            raise TypeError(f"deadline({seconds!r}); expected seconds above 0")
        if not is_time_limit(seconds):
            raise ValueError(f"deadline({seconds!r}); expected seconds above 0")
        self._seconds = seconds
        self._begun: tuple[Deadline, Token[Deadline | None]] | None = None

    def __enter__(self) -> None:
        if self._begun is not None:
            raise RuntimeError("this deadline has begun; make another one for another block")
        made = Deadline.begin(self._seconds)
        self._begun = made, current.set(made)

    def __exit__(self, *_: object) -> None:
        begun, self._begun = self._begun, None
        if begun is None:  # pragma: no cover - told to mypy
            return
        made, token = begun
        # A generator may leave its block after that of another one, which began later, or in
        # another thread, which closes it: it must not stay, nor come back, where it began.
        is_present = current.get() is made
        try:
            if is_present:
                current.reset(token)
                current.set(_present())
        except ValueError:
            is_present = False
        if not is_present:
            made.lift()

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Decorate a function, which gets a deadline of its own for each call."""
        if isgeneratorfunction(function) or isasyncgenfunction(function):
            raise TypeError(
                f"deadline() around {function!r} would end before the generator runs; use it as a "
                f"block in the generator"
            )
        if iscoroutinefunction(function):

            @wraps(function)
            async def timed_coroutine(*args: Any, **kwargs: Any) -> Any:
                with deadline(self._seconds):
                    return await function(*args, **kwargs)

            return cast("Callable[P, R]", timed_coroutine)

        @wraps(function)
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            with deadline(self._seconds):
                return function(*args, **kwargs)

        return timed

    @staticmethod
    def left() -> float:
        """Seconds that are left of the present deadline; infinite without one, 0 after it."""
        return max(0.0, ends_at() - monotonic())


retry_deadline = deadline
"""The old name of `deadline`."""


@contextmanager
def grace(seconds: float = GRACE) -> Iterator[None]:
    """Let what ends something take its time in this block, even if the deadline has ended.

    Args:
        seconds: The least that it has.
    """
    present = current.get()
    if present is None or present.left >= seconds:
        yield
        return
    longer = Deadline(seconds)
    longer._reason = present.reason
    token = current.set(longer)
    try:
        yield
    finally:
        current.reset(token)


def call_with_grace(function: Callable[[], object]) -> None:
    """Call a function that ends something, in a block of `grace` if there is a deadline."""
    if current.get() is None:
        function()
        return
    with grace():
        function()
