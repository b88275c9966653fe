"""Synchronous code in a thread of its own, with coroutines that the calling task runs for it.

A transaction belongs to a connection, and Django's connections to threads. So the attempts of a
coroutine are made by the loop for synchronous functions, in a thread that is the call's own. There
the function is called by a bridge: the task that called runs the coroutine, and all synchronous
code of that, such as each query, is run by the thread, which waits for the coroutine meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from contextvars import ContextVar, copy_context
from functools import partial, wraps
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar

from django_pooled.activity import current as current_activity
from django_pooled.backend import transaction_thread
from django_pooled.backend.transaction_thread import TransactionThread
from django_pooled.errors import AmbiguousCommit
from django_pooled.pool import deadline as deadlines
from django_pooled.pool.deadline import Deadline

from .asgiref_private import ServingThread, adopt, enter_thread, served_by
from .lent_context import LentContext

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextvars import Context

__all__ = ["ThreadedCall", "awaited_by_caller"]

R = TypeVar("R")


class _Cancellation(Deadline):
    """Ends what a call waits for when its task is cancelled, but for COMMIT and what follows it.

    A COMMIT is waited for, and resolved, as without a cancellation: it has limits of its own.

    Args:
        outer: The deadline around the call.
        note_wait: Called in the thread as it begins to wait for a connection.
    """

    __slots__ = ("_is_cancelled", "_is_shielded", "_note_wait")

    def __init__(self, outer: Deadline | None, note_wait: Callable[[], object]) -> None:
        super().__init__(inf, outer)
        self._note_wait = note_wait
        self._is_cancelled = False
        self._is_shielded = False

    def cancel(self) -> None:
        """The task was cancelled."""
        self._is_cancelled = True
        if not self._is_shielded and not self.is_lifted:
            self.end("the call was cancelled")

    def shield(self) -> None:
        """The coroutine has returned, and COMMIT comes next."""
        self._is_shielded = True

    def expose(self) -> None:
        """An attempt may begin, or a wait for one."""
        self._is_shielded = False
        if self._is_cancelled:
            self.cancel()

    def begin_wait(self) -> None:
        self._note_wait()

    def sleep(self, seconds: float) -> None:
        self.expose()
        super().sleep(seconds)


class _Run:
    """One run of a coroutine function, asked for by the thread."""

    def __init__(
        self,
        function: Callable[..., Awaitable[Any]],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        deadline: Deadline,
        name: str,
    ) -> None:
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.deadline = deadline
        """Of its statements."""
        # Such a query would be in autocommit, though its attempt was rolled back perhaps.
        self.thread = ServingThread(
            f"A task that was begun in a call of {name} goes on, and its transaction has ended. "
            f"Have the coroutine await its tasks, as asyncio.TaskGroup does, and begin what may "
            f"last longer in transaction.on_commit()."
        )
        self.context: Context = copy_context()
        """Of the thread before, and of the task after it."""
        self.result: Future[Any] = Future()

    def serve(self) -> Any:
        """Run what the coroutine submits to this thread until it has ended; return its result."""
        try:
            self.thread.run_until_future(self.result)
            adopt(self.context)
            return self.result.result()
        finally:
            # What it has raised has this frame in its traceback.
            del self.result

    def fail(self, error: BaseException) -> None:
        """End it with an error."""
        self.result.set_exception(error)


class ThreadedCall:
    """One call of a synchronous function in a thread, from a task.

    Args:
        function: Run in the thread.
        alias: The database of its transaction.
        name: Of what is called, for messages and statistics.
        when_waiting: Called in the event loop as the thread begins to wait for a connection.
    """

    def __init__(
        self,
        function: Callable[[], Any],
        alias: str,
        name: str,
        when_waiting: Callable[[], object] | None = None,
    ) -> None:
        self._function = function
        self._alias = alias
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._when_waiting = when_waiting
        self._deadline = _Cancellation(deadlines.current.get(), self._note_wait)
        self._lent = LentContext()
        # What the thread wants next; None for nothing more. What is taken out is answered by the
        # side that has taken it.
        self._wanted: deque[_Run | None] = deque()
        self._woken: asyncio.Future[None] | None = None
        self._is_abandoned = False
        self._result: Any = None
        self._error: BaseException | None = None

    async def run(self, start: Callable[[Callable[[], object]], object]) -> Any:
        """Make the call, and return its result.

        A task that is cancelled meanwhile waits for the thread to end: a statement is cancelled on
        the server, and the transaction rolled back. A COMMIT that was sent is waited for.

        Args:
            start: Runs a job in a thread.
        """
        self._context = copy_context()
        start(partial(self._context.copy().run, self._in_thread))
        cancelled: asyncio.CancelledError | None = None
        while True:
            try:
                while not self._wanted:
                    self._woken = self._loop.create_future()
                    await self._woken
            except asyncio.CancelledError as error:
                cancelled = error
                self._deadline.cancel()
                continue
            except GeneratorExit:
                # The coroutine is closed, and must not wait. The thread ends by itself.
                self._abandon()
                raise
            finally:
                self._woken = None
            wanted = self._wanted.popleft()
            if wanted is None:
                break
            if cancelled is None:
                cancelled = await self._await_for_thread(wanted)
            else:
                wanted.fail(cancelled)
            del wanted
        try:
            if cancelled is None or isinstance(self._error, AmbiguousCommit):
                if self._error is not None:
                    raise self._error
                return self._result
            if self._error is None or self._error is cancelled:
                raise cancelled
            # Such as that of the statement that was cancelled with it.
            raise cancelled from self._error
        finally:
            # A traceback has this frame, which would hold its error.
            del cancelled
            self._error = self._result = None

    async def _await_for_thread(self, wanted: _Run) -> asyncio.CancelledError | None:
        """Run a coroutine; return the error if it was cancelled."""
        with self._lent.within(wanted.context):
            try:
                with served_by(wanted.thread):
                    result = await wanted.function(*wanted.args, **wanted.kwargs)
            except BaseException as error:
                wanted.context = copy_context()
                # What the thread may still do for it is in vain.
                wanted.deadline.end("the coroutine has failed")
                wanted.fail(error)
                if isinstance(error, GeneratorExit):
                    self._abandon()
                    raise
                return error if isinstance(error, asyncio.CancelledError) else None
            wanted.context = copy_context()
            wanted.result.set_result(result)
            return None

    def await_in_task(
        self, function: Callable[..., Awaitable[Any]], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """In the thread: have the task run a coroutine, and return its result."""
        limit = Deadline(inf, deadlines.current.get())
        token = deadlines.current.set(limit)
        try:
            self._deadline.expose()
            wanted = _Run(function, args, kwargs, limit, self._name)
            self._thread.serving = wanted.thread
            self._want(wanted)
            result = wanted.serve()
            self._deadline.shield()
            return result
        finally:
            self._thread.serving = None
            deadlines.current.reset(token)
            # Tasks that were begun in the coroutine may have it still.
            limit.lift()

    def _in_thread(self) -> None:
        try:
            adopt(copy_context())
            enter_thread(self._loop)
            outer = transaction_thread.current.get()
            self._thread = TransactionThread(self._alias, self._name, outer)
            transaction_thread.current.set(self._thread)
            deadlines.current.set(self._deadline)
            _present.set(self)
            if current_activity.get() is None:
                current_activity.set(self._name)
            self._result = self._function()
        except BaseException as error:
            self._error = error
        self._deadline.lift()
        self._function = _nothing
        self._want(None)

    def _note_wait(self) -> None:
        if self._when_waiting is not None:
            # A closed event loop is met by what follows.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._when_waiting, context=self._context)

    def _want(self, wanted: _Run | None) -> None:
        self._wanted.append(wanted)
        try:
            self._loop.call_soon_threadsafe(self._wake)
        except RuntimeError:
            # The event loop is closed.
            self._is_abandoned = True
        if self._is_abandoned:
            self._fail_what_is_wanted()

    def _wake(self) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    def _abandon(self) -> None:
        self._is_abandoned = True
        self._deadline.cancel()
        self._fail_what_is_wanted()

    def _fail_what_is_wanted(self) -> None:
        while self._wanted:
            try:
                wanted = self._wanted.popleft()
            except IndexError:
                return
            if wanted is not None:
                wanted.fail(asyncio.CancelledError("the task is gone"))


_present: ContextVar[ThreadedCall | None] = ContextVar("django_pooled.threaded_call", default=None)
"""The call that this thread was started for, and tasks that it calls."""


def awaited_by_caller(function: Callable[..., Awaitable[R]]) -> Callable[..., R]:
    """Return a synchronous function that has the calling task run *function*, a coroutine function.

    For the thread of a `ThreadedCall`.
    """

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> R:
        present = _present.get()
        if present is None:  # pragma: no cover - told to mypy
            raise RuntimeError(f"{function!r} is called outside of the thread for it")
        result: R = present.await_in_task(function, args, kwargs)
        return result

    return call


def _nothing() -> None:
    return None
