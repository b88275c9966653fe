"""URL patterns that are retried stay what they are for everything that looks at them."""

from __future__ import annotations

import inspect
import sys
from types import ModuleType
from typing import Any

import pytest
from asgiref.sync import iscoroutinefunction
from django.contrib import admin
from django.core.checks import run_checks
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import (
    URLPattern,
    URLResolver,
    clear_url_caches,
    include,
    path,
    re_path,
    register_converter,
    resolve,
    reverse,
)
from django.urls.converters import IntConverter
from django.urls.resolvers import RegexPattern
from django.views import View
from django.views.decorators.csrf import csrf_exempt

from django_pooled import no_retry, retry_transaction
from django_pooled.activity import name_of
from django_pooled.urls import retry_requests
from django_pooled.views.retried_view import RetriedView


class Doubled(IntConverter):
    def to_python(self, value: str) -> int:
        return 2 * int(value)

    def to_url(self, value: Any) -> str:
        return str(value // 2)


register_converter(Doubled, "doubled")


@csrf_exempt
def plain(request: HttpRequest, **kwargs: object) -> HttpResponse:
    """A function."""
    return HttpResponse()


class Page(View):
    def get(self, request: HttpRequest, **kwargs: object) -> HttpResponse:
        return HttpResponse()


class Callable:
    def __call__(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse()


async def asynchronous(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


page, an_object = Page.as_view(), Callable()
originals: list[Any] = [
    path("plain/<doubled:number>/", plain, {"colour": "red"}, name="plain"),
    re_path(r"^page/(?P<slug>\w+)/$", page, name="page"),
    path("object/", an_object),
    path("async/", asynchronous),
    path("admin/", admin.site.urls),
    path("shop/", include(([path("item/<int:pk>/", page, name="item")], "shop"), namespace="two")),
]


class Urls(ModuleType):
    """A URLconf with these patterns."""

    def __init__(self, urlpatterns: list[Any]) -> None:
        super().__init__("urls_of_a_test")
        self.urlpatterns = urlpatterns


def match(address: str, urls: Any) -> Any:
    """Return what the address leads to in a URLconf."""
    return resolve(address, urls)


RETRIED, BARE = Urls(retry_requests(originals)), Urls(originals)
ADDRESSES = ["/plain/3/", "/page/a/", "/object/", "/admin/auth/user/", "/shop/item/7/"]


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_match_says_the_same(address: str) -> None:
    ours, theirs = match(address, RETRIED), match(address, BARE)
    assert isinstance(ours.func, RetriedView)
    assert ours.func == theirs.func
    assert theirs.func == ours.func
    assert ours.func in {theirs.func}
    assert repr(ours) == repr(theirs)
    names = vars(theirs).keys() - {"func", "tried"}
    assert {name: getattr(ours, name) for name in names} == {
        name: getattr(theirs, name) for name in names
    }


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_view_has_all_attributes_of_the_original(address: str) -> None:
    ours: Any = match(address, RETRIED).func
    theirs: Any = match(address, BARE).func
    for name in ("__module__", "__doc__", *vars(theirs)):
        if name not in ("_non_atomic_requests", "__wrapped__"):
            assert getattr(ours, name) == getattr(theirs, name)
    assert getattr(ours, "__name__", None) == getattr(theirs, "__name__", None)
    assert inspect.signature(ours) == inspect.signature(theirs)
    assert repr(ours) == repr(theirs)


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_view_goes_by_its_own_name(address: str) -> None:
    assert name_of(match(address, RETRIED).func) == name_of(match(address, BARE).func)


def test_an_attribute_that_is_set_later_is_seen_too(monkeypatch: pytest.MonkeyPatch) -> None:
    ours: Any = match("/plain/3/", RETRIED).func
    monkeypatch.setattr(plain, "login_required", False, raising=False)
    assert ours.login_required is False
    with pytest.raises(AttributeError):
        _ = ours.never_set


def test_addresses_are_reversed_by_name_and_by_view() -> None:
    with override_settings(ROOT_URLCONF=RETRIED):
        clear_url_caches()
        assert reverse("plain", kwargs={"number": 6}) == "/plain/3/"
        assert reverse(plain, kwargs={"number": 6, "colour": "red"}) == "/plain/3/"
        assert reverse("two:item", args=[7]) == "/shop/item/7/"
        assert reverse("admin:auth_user_changelist") == "/admin/auth/user/"
    clear_url_caches()


def test_tools_find_the_originals_in_the_patterns() -> None:
    for ours, theirs in zip(RETRIED.urlpatterns, originals, strict=True):
        assert type(ours) is type(theirs)
        assert str(ours.pattern) == str(theirs.pattern)
        if isinstance(ours, URLPattern):
            assert ours.callback is theirs.callback
            assert ours.lookup_str == theirs.lookup_str
        else:
            assert ours.url_patterns == theirs.url_patterns


def test_the_patterns_that_were_given_stay_as_they_are() -> None:
    assert match("/plain/3/", BARE).func is plain


def test_the_same_view_always_has_the_same_stand_in() -> None:
    assert match("/plain/3/", RETRIED).func is match("/plain/4/", RETRIED).func


def test_what_is_included_by_name_is_not_imported_before_it_is_needed() -> None:
    name = "tests.integration.views.lazily_included"
    sys.modules.pop(name, None)
    retry_requests([URLResolver(RegexPattern(""), name)])
    assert name not in sys.modules


def test_django_s_checks_of_urls_look_through_them() -> None:
    wrong: list[Any] = [
        path("/begins-with-a-slash/", plain),
        path("a/", include([re_path("^$b", plain)])),
    ]
    with override_settings(ROOT_URLCONF=Urls(retry_requests(wrong))):
        clear_url_caches()
        found = [message.id for message in run_checks(tags=["urls"])]
    clear_url_caches()
    assert "urls.W002" in found


def test_an_async_view_stays_one() -> None:
    found = match("/async/", RETRIED).func
    assert found == asynchronous
    assert iscoroutinefunction(found)
    assert not iscoroutinefunction(match("/plain/7/", RETRIED).func)


def own_view(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


@pytest.mark.parametrize(
    "decorate",
    [no_retry, retry_transaction, transaction.non_atomic_requests],
    ids=["no_retry", "retry_transaction", "non_atomic_requests"],
)
def test_views_that_say_so_are_left_alone(decorate: Any) -> None:
    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse()

    decorated = decorate(view)
    assert match("/v/", Urls(retry_requests([path("v/", decorated)]))).func is decorated


def test_one_that_opted_out_in_another_database_is_retried() -> None:
    def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse()

    decorated: Any = transaction.non_atomic_requests(using="other")(view)
    found: Any = match("/v/", Urls(retry_requests([path("v/", decorated)]))).func
    assert isinstance(found, RetriedView)
    assert found._non_atomic_requests == {"default", "other"}
    assert decorated._non_atomic_requests == {"other"}


def test_the_call_nearest_to_the_view_counts() -> None:
    inner = retry_requests([path("v/", own_view)], methods="all")
    outer = retry_requests([path("a/", include(inner)), *inner])
    nearest = match("/v/", Urls(inner)).func
    assert match("/a/v/", Urls(outer)).func is nearest
    assert match("/v/", Urls(outer)).func is nearest


def test_a_method_that_is_bound_cannot_be_marked() -> None:
    with pytest.raises(TypeError, match="decorate the function or the class"):
        no_retry(Callable().__call__)


def test_what_is_no_pattern_is_refused() -> None:
    with pytest.raises(TypeError, match=r"expected what path\(\)"):
        retry_requests([[path("v/", own_view)]])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"methods": "GET"}, ValueError, "methods='GET'.*expected 'safe'.*'all'"),
        ({"methods": "all", "read_only": True}, ValueError, "leave read_only out"),
        ({"methods": "unsafe", "read_only": True}, ValueError, "leave read_only out"),
        ({"idempotency_key": "Idempotency-Key"}, ValueError, "expected methods='all' or 'unsafe'"),
        ({"deadline": 0}, ValueError, "deadline is 0"),
        ({"attempts": 3}, TypeError, "attempts"),
    ],
)
def test_arguments_that_cannot_work_are_refused_at_once(
    options: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        retry_requests([], **options)
