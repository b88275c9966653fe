"""A view as the handler of requests calls it, with attempts around the original."""

from __future__ import annotations

from functools import partial, update_wrapper
from typing import TYPE_CHECKING, Any, cast

from asgiref.sync import markcoroutinefunction
from django.db import connections
from django.db.transaction import atomic
from django.template.response import SimpleTemplateResponse

from django_pooled.backend.django_private import is_block_of_test_case
from django_pooled.backend.non_atomic import non_atomic
from django_pooled.backend.wrapper import DatabaseWrapper
from django_pooled.integrations import ninja
from django_pooled.retry.callables import is_async, refuse_what_cannot_be_run_again
from django_pooled.retry.coroutines import awaited_by_caller
from django_pooled.retry.placement import Place, call_in_thread, placement_of

from .marks import class_of, leaves_method_alone
from .methods import SAFE
from .notice import Notice
from .rehearsed_call import RehearsedCall
from .restarted_call import RestartedCall

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.http import HttpRequest

    from django_pooled.retry.policy import TransactionOptions

    from .options import SiteOptions

__all__ = ["RetriedView"]


class RetriedView:
    """Stands for a view in a ``ResolverMatch``: equal to it, and with all its attributes.

    So middleware and ``process_view`` see what they saw: ``csrf_exempt``, ``login_required``,
    ``view_class``, and ``==`` and ``in`` with the view itself.

    Args:
        view: The original.
        options: Of the site.
    """

    def __init__(self, view: Callable[..., Any], options: SiteOptions) -> None:
        update_wrapper(self, view)
        # The transaction that ATOMIC_REQUESTS asks for is opened here, where it is needed.
        non_atomic(self, options.using, view)
        self.retried_calls = _Calls(view, options)
        if self.retried_calls.is_async:
            markcoroutinefunction(cast("Callable[..., Any]", self))

    def __call__(self, request: HttpRequest, /, *args: Any, **kwargs: Any) -> Any:
        """Answer a request; an async view's answer has to be awaited."""
        if self.retried_calls.is_async:
            return self.retried_calls.answer_async(request, args, kwargs)
        return self.retried_calls.answer(request, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        # Not by self: a copy is without attributes at first.
        calls = vars(self).get("retried_calls")
        if calls is None:
            raise AttributeError(name)
        return getattr(calls.view, name)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """That of the view, for ``isinstance()``; ``type()`` tells them apart."""
        return type(self.retried_calls.view)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, RetriedView):
            other = other.retried_calls.view
        return bool(self.retried_calls.view == other)

    def __hash__(self) -> int:
        return hash(self.retried_calls.view)

    def __repr__(self) -> str:
        return repr(self.retried_calls.view)


class _Calls:
    """The ways to call one view."""

    def __init__(self, view: Callable[..., Any], options: SiteOptions) -> None:
        self.view = view
        self.is_async = is_async(view)
        # As synchronous code calls it: an async one is awaited by the task of the request.
        self._called = awaited_by_caller(view) if self.is_async else view
        self._using = options.using
        name = _name_of(view)
        self._name = ".".join(name)
        self._notice = Notice(self._name, options.using)
        self._left_alone: dict[str, bool] = {}
        """By method."""
        self._renders = self._call(_render, name, options.renders, options)
        self._reads: RestartedCall | RehearsedCall | None = None
        if options.reads is not None:
            self._reads = self._call(self._called, name, options.reads, options)
        self._writes: RestartedCall | RehearsedCall | None = None
        if options.writes is not None:
            try:
                refuse_what_cannot_be_run_again(view)
            except TypeError as refusal:
                self._notice.tell(str(refusal))
            else:
                self._writes = self._call(self._called, name, options.writes, options)

    def _call(
        self,
        function: Callable[..., Any],
        name: tuple[str, str],
        transactions: TransactionOptions,
        options: SiteOptions,
    ) -> RestartedCall | RehearsedCall:
        if options.rehearse:
            return RehearsedCall(function, name, transactions)
        writes = function is self._called and options.writes is not None
        return RestartedCall(function, name, transactions, self._notice, writes=writes)

    def answer(self, request: HttpRequest, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        method = request.method or "GET"
        wrapper = connections[self._using]
        if isinstance(wrapper, DatabaseWrapper) and wrapper.attempt is not None:
            # Called by a view that is being retried.
            return self._called(request, *args, **kwargs)
        plain = partial(self._call_plainly, request, *args, **kwargs)
        if self._is_called_plainly(method):
            return plain()
        if obstacle := _obstacle(wrapper):
            self._notice.tell(obstacle)
            return plain()
        arguments = (request, *args)
        writes = self._writes and partial(self._writes, arguments, kwargs, plain)
        if method in SAFE and self._reads is not None:
            response = self._reads(arguments, kwargs, writes or plain)
        else:
            response = writes() if writes else plain()
        if isinstance(response, SimpleTemplateResponse) and not response.is_rendered:
            # Django renders it when middleware has seen it, and queries in its template are run
            # then.
            response.render = partial(self._render, response)  # type: ignore[method-assign]
        return response

    async def answer_async(
        self, request: HttpRequest, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        is_atomic = connections.settings[self._using]["ATOMIC_REQUESTS"]
        if self._is_called_plainly(request.method or "GET") and not is_atomic:
            return await self.view(request, *args, **kwargs)
        placement = await placement_of(self._using)
        if placement.place is Place.SAME_TRANSACTION:
            return await self.view(request, *args, **kwargs)
        answer = partial(self.answer, request, args, kwargs)
        return await call_in_thread(answer, self._using, self._name, placement)

    def _is_called_plainly(self, method: str) -> bool:
        call = self._reads if method in SAFE else self._writes
        return call is None or self._leaves_alone(method)

    def _call_plainly(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """Call the view as the handler would without us."""
        if connections.settings[self._using]["ATOMIC_REQUESTS"]:
            with atomic(using=self._using):
                return self._called(request, *args, **kwargs)
        return self._called(request, *args, **kwargs)

    def _render(self, response: SimpleTemplateResponse) -> Any:
        # A response is pickled for a cache once it is rendered.
        del vars(response)["render"]
        if _obstacle(connections[self._using]):
            return response.render()
        return self._renders((response,), {}, response.render)

    def _leaves_alone(self, method: str) -> bool:
        found = self._left_alone.get(method)
        if found is None:
            found = leaves_method_alone(self.view, method, self._using)
            if method in SAFE or len(self._left_alone) < _MOST_METHODS:
                self._left_alone[method] = found
        return found


_MOST_METHODS = 20
"""Methods whose functions are remembered; clients may send any."""


def _render(response: SimpleTemplateResponse) -> Any:
    return response.render()


def _obstacle(wrapper: object) -> str | None:
    """Return why no transaction can be begun now; None if it can."""
    if not isinstance(wrapper, DatabaseWrapper):
        # retry_transaction refuses it.
        return None
    if wrapper.in_atomic_block:
        if all(is_block_of_test_case(block) for block in wrapper.atomic_blocks):
            return None
        return f"it is called inside an atomic block on {wrapper.alias!r}, which is not its own"
    if wrapper.connection is None:
        is_on = wrapper.settings_dict["AUTOCOMMIT"]
    else:
        is_on = wrapper.autocommit
    return None if is_on else f"it is called with autocommit off on {wrapper.alias!r}"


def _name_of(view: Callable[..., Any]) -> tuple[str, str]:
    """Return the module and the name of a view, or of its class."""
    named: Any = class_of(view) or ninja.function_for(view) or view
    if not hasattr(named, "__qualname__"):
        named = type(named)
    return named.__module__, named.__qualname__
