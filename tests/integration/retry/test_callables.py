from __future__ import annotations

import abc
import collections
import functools
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import MagicMock, Mock

import pytest
from django.utils.functional import cached_property as django_cached_property
from django.views.decorators.cache import cache_control, cache_page

from django_pooled import retry_transaction, run_transaction
from tests.app.models import Note
from tests.support.attempts import attempts, retried

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("attempts")]


def note(text: str) -> str:
    Note.objects.create(text=text)
    attempts.done()
    return text


def memoized_by_hand(function: Callable[..., Any]) -> Callable[..., Any]:
    cache: dict[Any, Any] = {}

    @functools.wraps(function)
    def remembering(*args: Any) -> Any:
        if args not in cache:
            cache[args] = function(*args)
        return cache[args]

    return remembering


def memoized_as_by_cachetools(function: Callable[..., Any]) -> Callable[..., Any]:
    results: dict[Any, Any] = {}

    @functools.wraps(function)
    def remembering(*args: Any) -> Any:
        return results.setdefault(args, None) or function(*args)

    remembering.cache = results  # type: ignore[attr-defined]
    remembering.cache_key = hash  # type: ignore[attr-defined]
    return remembering


def passed_on(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def passing(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return passing


class Notes:
    """Methods and objects with a memory."""

    @functools.lru_cache  # noqa: B019 - that is what is refused
    def method(self, text: str) -> str:
        return note(text)

    @staticmethod
    @functools.cache
    def static(text: str) -> str:
        return note(text)

    @functools.lru_cache  # noqa: B019 - that is what is refused
    def __call__(self, text: str) -> str:
        return note(text)


MEMOIZED: dict[str, Callable[[], Any]] = {
    "typed lru_cache": lambda: functools.lru_cache(typed=True)(note),
    "partial": lambda: functools.partial(functools.lru_cache(note), "a"),
    "partial of partial": lambda: functools.partial(functools.partial(functools.cache(note))),
    "another decorator": lambda: passed_on(passed_on(functools.cache(note))),
    "function of a class": lambda: Notes.method,
    "bound method": lambda: Notes().method,
    "static method": lambda: Notes.static,
    "static method before its class": lambda: staticmethod(functools.cache(note)),
    "class method before its class": lambda: classmethod(cast("Any", functools.cache(note))),
    "object": Notes,
    "by hand": lambda: memoized_by_hand(note),
    "as by cachetools": lambda: memoized_as_by_cachetools(note),
    "response": lambda: cache_page(60)(note),
}


@pytest.mark.parametrize("form", MEMOIZED)
def test_a_function_with_a_memory_is_refused_with_the_right_order(form: str) -> None:
    with pytest.raises(TypeError, match=r"is memoized.*[Pp]ut the cache above the decorator"):
        retry_transaction(MEMOIZED[form]())


def test_a_function_that_cachetools_remembers_is_refused() -> None:
    cachetools = pytest.importorskip("cachetools", reason="cachetools is not installed")

    def method(self: Any, text: str) -> str:
        return note(text)

    for remembered in (
        cachetools.cached({})(note),
        cachetools.cached(cachetools.TTLCache(9, 60), info=True)(note),
        cachetools.cachedmethod(lambda self: {})(method),
    ):
        with pytest.raises(TypeError, match="is memoized"):
            retry_transaction(remembered)


def test_a_memory_above_the_decorator_keeps_what_was_committed() -> None:
    remembered = functools.lru_cache(retried(note))
    assert [remembered("a"), remembered("a")] == ["a", "a"]
    assert attempts.number == 2
    assert [one.text for one in Note.objects.all()] == ["a"]


def closing_over_a_cache() -> Callable[..., Any]:
    cache: collections.Counter[str] = collections.Counter()

    def counting(text: str) -> str:
        cache[text] += 1
        return note(text)

    return counting


@pytest.mark.parametrize(
    "function",
    [
        passed_on(note),
        functools.partial(note),
        Mock(wraps=note),
        closing_over_a_cache(),
        cache_control(private=True)(Mock()),
    ],
    ids=["wrapped", "partial", "mock", "its own variable", "header"],
)
def test_what_only_looks_like_a_memory_is_decorated(function: Callable[..., Any]) -> None:
    assert callable(retry_transaction(function))


class Ledger:
    """The decorator above what tells a class how to call a function."""

    kind = "ledger"

    @retried
    @staticmethod
    def static(text: str) -> str:
        return note(text)

    @retried
    @classmethod
    def of_class(cls, text: str) -> str:
        return note(f"{cls.kind}: {text}")

    @staticmethod
    @retried
    def static_above(text: str) -> str:
        return note(text)

    @classmethod
    @retried
    def of_class_above(cls, text: str) -> str:
        return note(f"{cls.kind}: {text}")


class Heir(Ledger):
    """Inherits them."""

    kind = "heir"


@pytest.mark.parametrize("owner", [Ledger, Ledger(), Heir, Heir()])
@pytest.mark.parametrize("name", ["static", "static_above", "of_class", "of_class_above"])
def test_static_and_class_methods_are_restarted_in_either_order(owner: Any, name: str) -> None:
    expected = f"{owner.kind}: a" if "class" in name else "a"
    assert getattr(owner, name)("a") == expected
    assert attempts.number == 2
    assert [one.text for one in Note.objects.all()] == [expected]


def test_a_static_method_object_that_is_called_itself_is_restarted() -> None:
    assert retried(staticmethod(note))("a") == "a"
    assert attempts.number == 2


def test_abstract_methods_stay_abstract() -> None:
    class Base(abc.ABC):
        @retried
        @abc.abstractmethod
        def plain(self) -> None: ...

        @retried
        @staticmethod
        @abc.abstractmethod
        def static() -> None: ...

        @retried
        @classmethod
        @abc.abstractmethod
        def of_class(cls) -> None: ...

    assert Base.__abstractmethods__ == {"plain", "static", "of_class"}


@pytest.mark.parametrize(
    ("function", "hint"),
    [
        (property(note), "write @property above"),
        (functools.cached_property(note), "write @cached_property above"),
        (django_cached_property(note), "write @cached_property above"),
        (functools.partialmethod(note, "a"), r"partialmethod\(retry_transaction\(note\)"),
        (functools.singledispatchmethod(note), "each implementation"),
    ],
    ids=["property", "cached_property", "django's", "partialmethod", "singledispatchmethod"],
)
def test_other_descriptors_are_refused_with_what_to_write(function: Any, hint: str) -> None:
    with pytest.raises(TypeError, match=hint):
        retry_transaction(function)


@pytest.mark.parametrize(
    ("descriptor", "kind"), [(staticmethod, "staticmethod"), (classmethod, "classmethod")]
)
def test_a_static_method_below_a_proxy_is_refused(descriptor: Any, kind: str) -> None:
    wrapt = pytest.importorskip("wrapt", reason="wrapt is not installed")

    def call(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        return wrapped(*args, **kwargs)

    transparent = wrapt.decorator(call)
    with pytest.raises(TypeError, match=f"write @{kind} above @retry_transaction"):
        retry_transaction(transparent(descriptor(note)))


class Answering:
    """Has an answer for every attribute, as a mock or a proxy has."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def __getattr__(self, name: str) -> object:
        if name == "answer":
            raise AttributeError(name)
        return self.answer

    def __call__(self) -> int:
        return 3


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("answer", [5, "text", None, Mock(), {"a": 1}])
def test_a_callable_that_answers_for_every_attribute_is_decorated(answer: object) -> None:
    assert retry_transaction(Answering(answer))() == 3


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("kind", [Mock, MagicMock])
def test_a_mock_is_decorated(kind: Any) -> None:
    assert run_transaction(kind(return_value=4)) == 4


def test_a_callable_that_forwards_to_a_function_keeps_its_name() -> None:
    class Forwarding:
        def __getattr__(self, name: str) -> object:
            return getattr(test_a_mock_is_decorated, name)

        def __call__(self) -> None: ...

    assert retry_transaction(Forwarding()).__name__ == "test_a_mock_is_decorated"
