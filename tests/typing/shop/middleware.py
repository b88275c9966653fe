"""What stands before and behind the views."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from django.http import HttpRequest, HttpResponse
from typing_extensions import assert_type

from django_pooled import (
    AmbiguousCommit,
    CheckoutTimeout,
    ConnectFailed,
    DeadlineExceeded,
    PoolClosed,
    PoolError,
    PoolExhausted,
    deadline,
    lane,
    retry_deadline,
)
from django_pooled.errors import Gauges
from django_pooled.middleware import (
    DatabaseUnavailableMiddleware,
    DeadlineMiddleware,
    LaneMiddleware,
    RetryReadsMiddleware,
    handler500,
    unavailable_response,
)
from django_pooled.signals import transaction_restarting
from django_pooled.streaming import ReleaseBeforeStreamingMiddleware

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.db import OperationalError


class Unavailable(DatabaseUnavailableMiddleware):
    retry_after = (1, 3)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        if isinstance(exception, AmbiguousCommit):
            return HttpResponse("Please look whether it was done.", status=500)
        return super().process_exception(request, exception)


class Release(ReleaseBeforeStreamingMiddleware):
    pass


class OneMinute(DeadlineMiddleware):
    pass


class Reads(RetryReadsMiddleware):
    pass


class Lanes(LaneMiddleware):
    pass


def timed(get_response: Callable[[HttpRequest], HttpResponse]) -> Any:
    def middleware(request: HttpRequest) -> HttpResponse:
        with retry_deadline(5.0):
            return get_response(request)

    return middleware


@deadline(2.0)
def total(numbers: list[int]) -> int:
    return sum(numbers)


@deadline(2.0)
async def total_later(numbers: list[int]) -> int:
    return sum(numbers)


@lane("task")
def total_at_leisure(numbers: list[int]) -> int:
    with lane("admin"):
        return sum(numbers)


async def totals(error: Exception) -> float:
    assert_type(total_at_leisure([1]), int)
    assert_type(total([1]), int)
    assert_type(await total_later([1]), int)
    is_djangos: OperationalError | None = error if isinstance(error, DeadlineExceeded) else None
    return deadline.left() if is_djangos is None else 0.0


def failed(request: HttpRequest) -> HttpResponse:
    return handler500(request)


def explain(request: HttpRequest, error: Exception) -> str:
    response = unavailable_response(request, error, retry_after=(2, 4))
    assert_type(response, HttpResponse | None)
    if isinstance(error, (CheckoutTimeout, ConnectFailed, PoolClosed, PoolExhausted)):
        also: PoolError = error
        is_djangos: OperationalError = also
        assert_type(error.gauges, Gauges)
        idle: int = error.gauges.idle
        return f"{error.alias}, {error.elapsed:.1f} s, {idle}, {is_djangos}"
    return "" if response is None else response["Retry-After"]


restarts: Counter[str] = Counter()


def count_restarts(sender: object, *, sqlstate: str | None, attempt: int, **others: Any) -> None:
    restarts[sqlstate or "lost"] += 1


transaction_restarting.connect(count_restarts)
