"""``@retry_transaction``: a whole transaction, run again from its start when that is safe."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, TypeVar, overload

from django.apps import apps
from django.db import DEFAULT_DB_ALIAS

from django_pooled.replay.idempotency import IdempotencyOptions
from django_pooled.tokens.idempotency import refuse_without_app

from .callables import is_async
from .classify import RetryOn
from .decorated import decorated
from .policy import BACKOFF, Policy, refuse_unknown_arguments

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from psycopg import IsolationLevel
    from typing_extensions import Unpack

    from django_pooled.pool.backoff import Backoff
    from django_pooled.replay.idempotency import KeyOf, ScopeOf

    from .policy import TransactionOptions

__all__ = ["arun_transaction", "retry_transaction", "run_transaction"]

P = ParamSpec("P")
R = TypeVar("R")


@overload
def retry_transaction(function: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def retry_transaction(
    **options: Unpack[TransactionOptions],
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def retry_transaction(
    function: Callable[P, R] | None = None,
    /,
    *,
    using: str = DEFAULT_DB_ALIAS,
    max_attempts: int = 10,
    deadline: float = 30.0,
    isolation_level: IsolationLevel | None = None,
    read_only: bool | None = None,
    deferrable: bool | None = None,
    statement_timeout: float | None = None,
    lock_timeout: float | None = None,
    retry_on: Iterable[str] = (),
    commit_check: str | Callable[..., bool | None] = "xid",
    backoff: Backoff = BACKOFF,
    sleep: Callable[[float], None] = time.sleep,
    idempotency_key: str | KeyOf | None = None,
    idempotency_required: bool = False,
    idempotency_scope: ScopeOf | None = None,
    idempotency_expiry: float = 86_400.0,
    **unknown: object,
) -> Callable[P, R] | Callable[[Callable[P, R]], Callable[P, R]]:
    """Run a callable in a transaction, and all of it again after a retryable failure.

    Retryable are serialization failures and deadlocks (SQLSTATE 40001, 40P01), also when COMMIT
    raises them, the loss of the connection before COMMIT was sent, and a server that turned
    read-only (25006); docs/retry.md has the whole table. A COMMIT whose answer was lost is looked
    up on the server: committed is success, aborted is run again. Saturation of the pool is never
    retried.

    A coroutine function is decorated in the same way, and has a thread and a connection of its own
    for each call; see docs/async.md.

    The decorated callable opens the transaction itself. Under ``ATOMIC_REQUESTS`` it replaces
    the handler's own; decorate a class-based view's ``dispatch``, by ``method_decorator``. Called
    within another call decorated for the same database, it joins that one's transaction.

    Args:
        function: What to decorate; left out where there are options, which are keywords.
        using: Key of the database in ``settings.DATABASES``.
        max_attempts: Most runs, the first included.
        deadline: Seconds from the first attempt after which no other is started; see also
            `django_pooled.deadline`.
        isolation_level: Of the transaction; None for the connection's own. Without effect in a
            ``TestCase``, whose transaction has begun.
        read_only: Whether the transaction is ``READ ONLY``; None for the session's default.
        deferrable: Whether a transaction that is SERIALIZABLE and READ ONLY waits for a snapshot
            that cannot fail; None for the session's default.
        statement_timeout: Seconds that each statement may take; None for the session's own limit.
            It takes the place of that, but not of a shorter `django_pooled.deadline`. Like
            *lock_timeout*, it is sent with BEGIN, and without effect in a ``TestCase``.
        lock_timeout: Seconds that a statement may wait for each lock; None for the session's own.
        retry_on: Further failures that are worth another attempt: SQLSTATEs such as ``"55P03"``,
            or with the name of a constraint, ``"23505:app_slot_unique"``.
        commit_check: What decides when the answer to COMMIT was lost. "xid": the server, by the
            transaction's id; if it cannot tell, `AmbiguousCommit` is raised. "token": a row that
            the transaction left in a table of ``django_pooled.tokens``, on any server, after a
            crash or a failover too. "idempotent": the server; if it cannot tell, the callable is
            run again. "raise": nothing, `AmbiguousCommit` is always raised. Or a callable, called
            with the arguments of the call once the transaction is not in progress any more: it
            returns whether the transaction was committed, or None if it cannot tell.
        backoff: Waits between attempts.
        sleep: Waits the given seconds; tests pass their own, or use `django_pooled.testing`.
        idempotency_key: For views: the header with the request's key, such as
            ``"Idempotency-Key"``, or a callable that takes the request and returns the key or
            None. A request that is repeated with its key gets the stored response; see
            docs/idempotency.md.
        idempotency_required: Whether a request without a key is refused, with 400.
        idempotency_scope: A callable that takes the request and returns whose key it is; None for
            the user's, or that of what the request sends for ``Authorization``, or the session's.
        idempotency_expiry: Seconds for which a key and its response are kept.
        unknown: Refused, with what to write instead.

    Raises:
        TransactionManagementError: Called inside an ``atomic`` block, which it could not restart.
        AmbiguousCommit: Whether the transaction was committed cannot be told.
        ImproperlyConfigured: The database's ENGINE is not django_pooled, or the table for
            *idempotency_key* is missing.
        TypeError, ValueError: At decoration, for a callable or argument that cannot work.

    The callable's own exceptions pass through; the last one bears a note of the attempts made.
    """
    refuse_unknown_arguments(unknown)
    policy = Policy(
        using=using,
        max_attempts=max_attempts,
        deadline=deadline,
        isolation_level=isolation_level,
        read_only=read_only,
        deferrable=deferrable,
        statement_timeout=statement_timeout,
        lock_timeout=lock_timeout,
        retry_on=RetryOn.parse(retry_on),
        commit_check=commit_check,
        backoff=backoff,
        sleep=sleep,
        idempotency=IdempotencyOptions.of(
            idempotency_key, idempotency_required, idempotency_scope, idempotency_expiry
        ),
    )
    if policy.idempotency is not None and apps.ready:
        refuse_without_app(using)
    if function is None:
        return partial(decorated, policy)
    return decorated(policy, function)


def run_transaction(function: Callable[[], R], /, **options: Unpack[TransactionOptions]) -> R:
    """Run *function* at once, as `retry_transaction` would run it, and return its result.

    The form for a block of code: a ``with`` block cannot be run twice, and a loop around one
    cannot tell its end from a ``return`` in it when COMMIT fails. ::

        @run_transaction
        def moved():  # the function's result, not the function
            ...

    Args:
        function: Called without arguments, once for each attempt.
        options: As for `retry_transaction`, whose errors are raised here.
    """
    if is_async(function):
        raise TypeError(
            f"run_transaction cannot run the coroutine function {function!r}: write "
            f"await arun_transaction(...)."
        )
    return retry_transaction(**options)(function)()


async def arun_transaction(
    function: Callable[[], Awaitable[R]], /, **options: Unpack[TransactionOptions]
) -> R:
    """Run a coroutine function at once, as `retry_transaction` would run it; return its result. ::

        async def moved():
            ...

        result = await arun_transaction(moved)

    Args:
        function: Called without arguments, and awaited, once for each attempt.
        options: As for `retry_transaction`, whose errors are raised here.
    """
    if not is_async(function):
        raise TypeError(
            f"arun_transaction takes a coroutine function, not {function!r}: for a synchronous "
            f"one write await sync_to_async(run_transaction)(...)."
        )
    return await retry_transaction(**options)(function)()
