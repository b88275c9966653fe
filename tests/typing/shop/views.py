"""Everything that a project decorates, in each form that there is."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.db.models import F
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils.decorators import method_decorator
from django.views import View
from django.views.generic import CreateView
from psycopg import IsolationLevel
from typing_extensions import assert_type

from django_pooled import (
    Backoff,
    arun_transaction,
    retry_deadline,
    retry_transaction,
    run_transaction,
)
from shop.models import Order

if TYPE_CHECKING:
    from collections.abc import Callable


@retry_transaction
def pay(request: HttpRequest, number: int) -> HttpResponse:
    Order.objects.filter(number=number).update(paid=True)
    return HttpResponse(status=204)


@retry_transaction()
def renumber(request: HttpRequest, *, by: int = 1) -> JsonResponse:
    return JsonResponse({"changed": Order.objects.update(number=F("number") + by)})


@retry_transaction(
    using="default",
    max_attempts=3,
    deadline=2.5,
    isolation_level=IsolationLevel.SERIALIZABLE,
    read_only=True,
    retry_on=["55P03", "23505:shop_order_number_key"],
    commit_check="token",
    backoff=Backoff(initial=0.01, maximum=0.5, jitter=False),
    sleep=time.sleep,
)
def unpaid(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(Order.objects.filter(paid=False).count()))


def was_paid(number: int) -> bool | None:
    return Order.objects.filter(number=number, paid=True).exists() or None


@retry_transaction(commit_check=was_paid)
def pay_once(number: int) -> Order:
    order = Order.objects.select_for_update().get(number=number)
    order.paid = True
    order.save()
    return order


@method_decorator(retry_transaction, name="dispatch")
class Pay(View):
    def post(self, request: HttpRequest, number: int) -> HttpResponse:
        return pay(request, number)


@method_decorator(retry_transaction(max_attempts=5), name="dispatch")
class Create(CreateView[Order, Any]):
    model = Order
    fields = ["number"]


class Register:
    @retry_transaction
    def close(self, day: str) -> int:
        return len(day)

    @staticmethod
    @retry_transaction(max_attempts=2)
    def reopen() -> None: ...


def at_once(request: HttpRequest) -> HttpResponse:
    def count() -> int:
        return Order.objects.count()

    assert_type(run_transaction(count), int)
    assert_type(run_transaction(count, deadline=1.0, read_only=True), int)
    assert_type(run_transaction(lambda: Order.objects.first()), Order | None)

    @run_transaction
    def newest() -> Order:
        return Order.objects.latest("number")

    assert_type(newest, Order)
    with retry_deadline(2.5) as nothing:
        assert_type(nothing, None)
        assert_type(pay(request, number=1), HttpResponse)
    assert_type(renumber(request, by=2), JsonResponse)
    assert_type(pay_once(7), Order)
    assert_type(Register().close("monday"), int)
    assert_type(Register.reopen(), None)
    return HttpResponse()


def patience(seconds: float) -> Callable[[Callable[[], None]], Callable[[], None]]:
    wait: float = Backoff(initial=seconds).wait(2)
    return retry_transaction(deadline=wait)


@retry_transaction(max_attempts=3)
async def ship(request: HttpRequest, number: int) -> HttpResponse:
    await Order.objects.filter(number=number).aupdate(paid=True)
    return HttpResponse(status=204)


class Reopen(View):
    @retry_transaction
    async def post(self, request: HttpRequest, number: int) -> HttpResponse:
        return assert_type(await ship(request, number), HttpResponse)


async def acount() -> int:
    return await Order.objects.acount()


async def count_later() -> None:
    assert_type(await arun_transaction(acount), int)
    assert_type(await arun_transaction(acount, deadline=1.0), int)


async def pay_later(request: HttpRequest, number: int) -> HttpResponse:
    return assert_type(await sync_to_async(pay)(request, number), HttpResponse)
