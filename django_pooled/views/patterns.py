"""URL patterns whose views are retried, whatever they include and whenever that is loaded."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any, Literal

from django.urls import ResolverMatch, URLPattern, URLResolver

from .marks import is_left_alone
from .options import SiteOptions
from .retried_view import RetriedView

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from typing_extensions import Unpack

    from django_pooled.retry.policy import TransactionOptions

__all__ = ["retry_requests", "site_options"]

_MOST_VIEWS = 10_000
"""Views whose stand-ins are kept, so that those made at run time do not pile up."""

_OPTIONS = "django_pooled_options"


def retry_requests(
    urlpatterns: Iterable[URLPattern | URLResolver],
    /,
    *,
    methods: Literal["safe", "unsafe", "all"] = "safe",
    rehearse: bool = False,
    **options: Unpack[TransactionOptions],
) -> list[URLPattern | URLResolver]:
    """Run every view under these URL patterns as ``retry_transaction`` runs a decorated one.

    For the root URLconf, or a part of it. A view of what is included counts too: in URLconfs that
    are loaded later, class-based, of the admin, of Django REST framework, of Ninja. The patterns
    stay what they are for ``reverse()``, ``resolve()``, middleware and tools. Nearer the view the
    call that counts: patterns that were given to this function already keep their options.

    Left alone are views that are decorated by ``retry_transaction``, and that are marked by
    ``no_retry`` or by Django's ``non_atomic_requests``. So is a response's stream: it is read after
    the transaction. A template response that Django renders later is rendered in
    another transaction of the same kind.

    A GET that writes after all is run again without a transaction of ours, and a warning names it;
    so is a view that takes a session advisory lock in a transaction that writes.

    Args:
        urlpatterns: What ``path()``, ``re_path()`` and ``i18n_patterns()`` return.
        methods: "safe": GET, HEAD, OPTIONS and TRACE, in READ ONLY transactions; other requests are
            handled as before. "unsafe": the others alone, in transactions that may write. "all":
            both.
        rehearse: Whether to make no second attempts, and to log what they would repeat outside of
            the database.
        options: As for ``retry_transaction``. ``deadline`` is 8 s if left out.
            ``read_only=False`` lets requests of safe methods write.

    Raises:
        TypeError, ValueError: An argument that cannot work.
    """
    site = _Site(SiteOptions.parse(methods, rehearse, options))
    return [site.pattern(entry) for entry in urlpatterns]


def site_options(entry: object) -> tuple[SiteOptions, ...]:
    """Return the options of each call of `retry_requests` that was given a URL pattern.

    The first is the one that counts.
    """
    found: tuple[SiteOptions, ...] = getattr(entry, "__dict__", {}).get(_OPTIONS, ())
    return found


class _Site:
    """The views under the patterns of one call.

    Args:
        options: Of that call.
    """

    def __init__(self, options: SiteOptions) -> None:
        self._options = options
        self._views: dict[int, tuple[Any, Any]] = {}
        """By its id a view, which keeps its id from being reused, and what stands for it."""

    def pattern(self, entry: URLPattern | URLResolver) -> URLPattern | URLResolver:
        """Return a copy of a pattern that resolves to views that are retried."""
        if not isinstance(entry, URLPattern | URLResolver):
            raise TypeError(
                f"retry_requests was given {entry!r} among URL patterns; expected what path(), "
                f"re_path() or i18n_patterns() return"
            )
        # What the pattern is of stays visible to tools that walk through the URLs, and what it
        # includes is not loaded. The original may be in other URLconfs too.
        copied = copy(entry)
        resolve = entry.resolve

        def resolve_retried(path: str) -> ResolverMatch | None:
            match: ResolverMatch | None = resolve(path)
            if match is not None:
                match.func = self.view(match.func)
            return match

        vars(copied)[_OPTIONS] = (*site_options(entry), self._options)
        copied.resolve = resolve_retried  # type: ignore[method-assign]
        return copied

    def view(self, view: Callable[..., Any]) -> Callable[..., Any]:
        """Return what stands for a view; the view itself if it is left alone."""
        known = self._views.get(id(view))
        if known is not None:
            stand_in: Callable[..., Any] = known[1]
            return stand_in
        if isinstance(view, RetriedView) or is_left_alone(view, self._options.using):
            stand_in = view
        else:
            stand_in = RetriedView(view, self._options)
        if len(self._views) >= _MOST_VIEWS:
            self._views.clear()
        self._views[id(view)] = view, stand_in
        return stand_in
