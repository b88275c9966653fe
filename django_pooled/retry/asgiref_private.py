"""Names of asgiref that it does not document, each with the reason.

asgiref runs synchronous code, such as each query of Django's ORM, in a thread that it chooses; it
has no public way to give it one for a part of a task, nor to see which it would take.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from asgiref import sync
from asgiref.sync import AsyncToSync, SyncToAsync
from django.core.exceptions import ImproperlyConfigured

from django_pooled.diagnostics.required_names import Need, needed_of, require

with needed_of("asgiref"):
    from asgiref import current_thread_executor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Executor, Future
    from contextvars import Context
    from threading import Thread

__all__ = [
    "ServingThread",
    "adopt",
    "enter_thread",
    "is_old_release",
    "is_same",
    "refuse_old_release",
    "served_by",
    "transplanted",
    "usual_executor",
    "usual_thread",
]

_WHERE = "see in which thread synchronous code of a coroutine would be run"
_SERVE = "run the queries of a coroutine in the thread of its transaction"

require(
    "asgiref",
    (
        Need(AsyncToSync, "executors", _SERVE),
        Need(AsyncToSync, "loop_thread_executors", _WHERE),
        Need(SyncToAsync, "thread_sensitive_context context_to_thread_executor", _WHERE),
        Need(SyncToAsync, "single_thread_executor", _WHERE),
        Need(SyncToAsync, "threadlocal", "have async_to_sync() in a thread find the event loop"),
        Need(sync, "_restore_context", "have context variables follow the code to a thread"),
        Need(current_thread_executor, "CurrentThreadExecutor", _SERVE),
    ),
)
require(
    "asgiref",
    (Need(current_thread_executor.CurrentThreadExecutor, "run_until_future submit", _SERVE),),
)

# What asgiref's locals hold in a context, for one thread alone; there from asgiref 3.12 on.
_Storage: Any = getattr(sync, "_Storage", None)
_rehome: Any = getattr(sync, "_rehome", None)


def is_old_release() -> bool:
    """Tell whether asgiref is older than 3.9: a task sees what others have set in its locals.

    Queries of one task would get into the transaction of another.
    """
    # The same release has given it this argument.
    kind = current_thread_executor.CurrentThreadExecutor
    return "old_executor" not in inspect.signature(kind).parameters


def refuse_old_release() -> None:
    """Refuse such a release.

    Raises:
        ImproperlyConfigured: It is one.
    """
    if is_old_release():
        raise ImproperlyConfigured(
            f"retry_transaction on a coroutine function needs asgiref 3.9 or newer; "
            f"{version('asgiref')} is installed."
        )


class ServingThread(current_thread_executor.CurrentThreadExecutor):
    """The thread that makes this, which runs what is submitted while it waits for a future.

    Args:
        refusal: Why it runs nothing more, once it waits no longer.
    """

    def __init__(self, refusal: str) -> None:
        super().__init__(None)
        self._refusal = refusal

    @property
    def is_over(self) -> bool:
        """Whether it runs nothing more."""
        return self._broken

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """As Executor's."""
        if self.is_over:
            raise RuntimeError(self._refusal)
        return super().submit(fn, *args, **kwargs)


@contextmanager
def served_by(executor: Executor) -> Iterator[None]:
    """Have this task, and those that it makes, run synchronous code by *executor*."""
    local: Any = AsyncToSync.executors
    before = getattr(local, "current", None)
    local.current = executor
    try:
        yield
    finally:
        # A task that is destroyed is closed in the context of other code.
        if getattr(local, "current", None) is executor:
            local.current = before


def usual_executor() -> Executor:
    """Return what runs synchronous code of this task, in asgiref's own order."""
    current: Executor | None = getattr(AsyncToSync.executors, "current", None)
    return _executor_of_context() if current is None else current


def _executor_of_context() -> Executor:
    context = SyncToAsync.thread_sensitive_context.get(None)
    if context is None:
        loop: Any = asyncio.get_running_loop()
        return AsyncToSync.loop_thread_executors.get(loop, SyncToAsync.single_thread_executor)
    executor = SyncToAsync.context_to_thread_executor.get(context)
    if executor is None:
        executor = ThreadPoolExecutor(max_workers=1)
        SyncToAsync.context_to_thread_executor[context] = executor
    return executor


def usual_thread() -> Thread | None:
    """Return the thread of `usual_executor`; None if that has none yet, or none any more."""
    context = SyncToAsync.thread_sensitive_context.get(None)
    executor: Any = getattr(AsyncToSync.executors, "current", None)
    if executor is None and context is not None:
        executor = SyncToAsync.context_to_thread_executor.get(context)
    elif executor is None:
        executor = _executor_of_context()
    elif isinstance(executor, ServingThread) and executor.is_over:
        # A task that a call has left behind: the thread may serve another call by now.
        return None
    thread: Thread | None = getattr(executor, "_work_thread", None)
    if thread is None:
        # A pool of one thread, which it makes for the first work.
        thread = next(iter(tuple(getattr(executor, "_threads", ()))), None)
    return thread


def enter_thread(loop: asyncio.AbstractEventLoop) -> None:
    """Have ``async_to_sync()`` in this thread run coroutines in *loop*, as where asgiref calls."""
    local: Any = SyncToAsync.threadlocal
    local.main_event_loop, local.main_event_loop_pid = loop, os.getpid()
    # Tasks that asgiref cancels with one that waits for this thread: none does.
    local.task_context = None


def adopt(context: Context) -> None:
    """Give variables the values that they have in *context*, usable in this thread."""
    sync._restore_context(context)


def transplanted(value: Any) -> Any:
    """Return the value of a variable as this thread has to have it."""
    return _rehome(value) if _Storage is not None and type(value) is _Storage else value


def is_same(value: Any, other: Any) -> bool:
    """Tell whether two values of a variable are the same, if for different threads."""
    return value is other or (
        _Storage is not None
        and type(value) is _Storage
        and type(other) is _Storage
        and value.data is other.data
    )
