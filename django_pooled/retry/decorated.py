"""What takes the place of a decorated function: it looks where it is called, and makes attempts."""

from __future__ import annotations

from collections.abc import Callable
from functools import WRAPPER_ASSIGNMENTS, WRAPPER_UPDATES, partial, wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.db.transaction import TransactionManagementError
from django.http import HttpResponse

from django_pooled.backend.django_private import is_block_of_test_case
from django_pooled.backend.non_atomic import non_atomic
from django_pooled.backend.wrapper import DatabaseWrapper
from django_pooled.replay.responses import tell_if_it_reads_later

from .async_callables import as_coroutine_function, as_dispatch
from .callables import REBINDING, is_async, is_dispatch, refuse_what_cannot_be_run_again
from .idempotency import KeyedLoop, keyed_request
from .loop import Loop
from .retried import Retried

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

    from .policy import Policy

__all__ = ["decorated"]

P = ParamSpec("P")
R = TypeVar("R")


def decorated(policy: Policy, function: Callable[P, R]) -> Callable[P, R]:
    """Return what runs *function* again after a retryable failure, called in the same way.

    Raises:
        TypeError: It cannot be run again.
    """
    if type(function) in REBINDING:
        # It goes on telling the class how to call the function that is returned.
        method: Any = function
        return type(method)(decorated(policy, method.__func__))  # type: ignore[no-any-return]
    refuse_what_cannot_be_run_again(function)
    retried = Retried(function, policy)
    calling = partial(_calling, retried)
    run_again: Callable[P, R]
    if is_async(function):
        run_again = as_coroutine_function(retried, calling)
    elif is_dispatch(function):
        run_again = as_dispatch(retried, calling)
    else:
        run_again = calling(function)
    # As a view it begins its transaction itself, also with ATOMIC_REQUESTS.
    return non_atomic(run_again, policy.using, function)


def _calling(retried: Retried[R], called: Callable[..., R]) -> Callable[..., R]:
    """Return what makes the attempts of a function, which is called by *called* in each."""
    policy, function, using = retried.policy, retried.function, retried.policy.using

    @wraps(function, *_describing(function))
    def run_again(*args: Any, **kwargs: Any) -> R:
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
            tell_if_it_reads_later(function, result)
        return result

    return run_again


_KINDS: dict[str, Any] = {
    "__name__": str,
    "__qualname__": str,
    "__annotations__": dict,
    "__annotate__": Callable,
    "__type_params__": tuple,
}
"""What a function takes for its attributes; for the others, anything."""


def _describing(function: object) -> tuple[list[str], list[str]]:
    """Return which attributes describe *function*, and which are updated by its own.

    A callable object may have an answer for every attribute, a mock for one.
    """
    assigned: list[str] = [
        name
        for name in WRAPPER_ASSIGNMENTS
        if isinstance(getattr(function, name, None), _KINDS.get(name, object))
    ]
    return assigned, list(WRAPPER_UPDATES) if isinstance(
        getattr(function, "__dict__", None), dict
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
