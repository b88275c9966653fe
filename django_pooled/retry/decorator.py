"""``@retry_transaction``: a whole transaction, run again from its start when that is safe."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import WRAPPER_ASSIGNMENTS, WRAPPER_UPDATES, partial, wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.transaction import TransactionManagementError
from django.http import HttpResponse

from django_pooled.backend.django_private import is_block_of_test_case
from django_pooled.backend.non_atomic import non_atomic
from django_pooled.backend.wrapper import DatabaseWrapper
from django_pooled.replay.idempotency import IdempotencyOptions
from django_pooled.replay.responses import tell_if_it_reads_later
from django_pooled.tokens.idempotency import refuse_without_app

from .async_callables import as_coroutine_function, as_dispatch
from .callables import REBINDING, is_async, is_dispatch, refuse_what_cannot_be_run_again
from .classify import RetryOn
from .idempotency import KeyedLoop, keyed_request
from .loop import Loop
from .policy import BACKOFF, Policy, refuse_unknown_arguments
from .retried import Retried

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

    from django.db.backends.base.base import BaseDatabaseWrapper
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

    def decorate(decorated: Callable[P, R]) -> Callable[P, R]:
        if type(decorated) in REBINDING:
            # It goes on telling the class how to call the function that is returned.
            method: Any = decorated
            return type(method)(decorate(method.__func__))  # type: ignore[no-any-return]
        refuse_what_cannot_be_run_again(decorated)
        retried = Retried(decorated, policy)

        def calling(called: Callable[..., R]) -> Callable[P, R]:
            """Return what runs *decorated* again, which is called by *called*."""

            @wraps(decorated, *_describing(decorated))
            def run_again(*args: P.args, **kwargs: P.kwargs) -> R:
                wrapper = connections[using]
                if not isinstance(wrapper, DatabaseWrapper):
                    raise _wrong_engine(wrapper)
                keyed: Any = None
                if policy.idempotency is not None:
                    keyed = keyed_request(policy.idempotency, args, kwargs, retried.name)
                    if isinstance(keyed, HttpResponse):
                        return keyed  # type: ignore[return-value]
                if wrapper.in_atomic_block:
                    if wrapper.attempt is not None:
                        return (
                            called(*args, **kwargs)
                            if keyed is None
                            else keyed.join(wrapper, partial(called, *args, **kwargs))
                        )
                    _refuse_foreign_block(wrapper)
                # Without a connection, the next one is as the settings say.
                elif not (
                    wrapper.settings_dict["AUTOCOMMIT"]
                    if wrapper.connection is None
                    else wrapper.autocommit
                ):
                    raise TransactionManagementError(
                        f"retry_transaction was called with autocommit off on {using!r}; it opens "
                        f"and ends its transaction itself."
                    )
                loop = Loop if keyed is None else partial(KeyedLoop, keyed)
                result: R = loop(retried, wrapper, args, kwargs, called).run()
                if result is not None:
                    tell_if_it_reads_later(decorated, result)
                return result

            return run_again

        is_keyed = policy.idempotency is not None
        run_again: Callable[P, R]
        if is_async(decorated):
            run_again = as_coroutine_function(calling, decorated, using, is_keyed=is_keyed)
        elif is_dispatch(decorated):
            run_again = as_dispatch(calling, decorated, using, is_keyed=is_keyed)
        else:
            run_again = calling(decorated)
        # As a view it begins its transaction itself, also with ATOMIC_REQUESTS.
        return non_atomic(run_again, using, decorated)

    return decorate if function is None else decorate(function)


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


_KINDS: dict[str, Any] = {
    "__name__": str,
    "__qualname__": str,
    "__annotations__": dict,
    "__annotate__": Callable,
    "__type_params__": tuple,
}
"""What a function takes for its attributes; for the others, anything."""


def _describing(decorated: object) -> tuple[list[str], list[str]]:
    """Return which attributes describe *decorated*, and which are updated by its own.

    A callable object may have an answer for every attribute, a mock for one.
    """
    assigned: list[str] = [
        name
        for name in WRAPPER_ASSIGNMENTS
        if isinstance(getattr(decorated, name, None), _KINDS.get(name, object))
    ]
    return assigned, list(WRAPPER_UPDATES) if isinstance(
        getattr(decorated, "__dict__", None), dict
    ) else []


def _wrong_engine(wrapper: BaseDatabaseWrapper) -> ImproperlyConfigured:
    using, engine = wrapper.alias, wrapper.settings_dict["ENGINE"]
    return ImproperlyConfigured(
        f"retry_transaction(using={using!r}) needs ENGINE 'django_pooled'; "
        f"DATABASES[{using!r}]['ENGINE'] is {engine!r}."
    )


def _refuse_foreign_block(wrapper: DatabaseWrapper) -> None:
    if not all(map(is_block_of_test_case, wrapper.atomic_blocks)):
        raise TransactionManagementError(
            f"retry_transaction was called inside an atomic block on {wrapper.alias!r}, which it "
            f"could not run again from its start. Decorate the outermost function instead; for a "
            f"class-based view under ATOMIC_REQUESTS that is dispatch: "
            f"@method_decorator(retry_transaction, name='dispatch')."
        )
