"""Can the views under ``retry_requests`` be retried: E005 and W021."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.conf import settings
from django.core.checks import CheckMessage, Error
from django.core.checks import Warning as CheckWarning
from django.core.exceptions import ImproperlyConfigured
from django.db.backends.dummy.base import DatabaseWrapper as NoDatabase
from django.db.utils import load_backend
from django.urls import URLResolver, get_resolver

from django_pooled.backend.databases import is_ours

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["check_retried_urls"]


def check_retried_urls(**kwargs: object) -> list[CheckMessage]:
    """Check the databases that requests are retried on, and patterns that are so twice."""
    if getattr(settings, "ROOT_URLCONF", None) is None:
        return []
    # Not before: without psycopg the check that says so still has to run.
    from django_pooled.views.patterns import site_options

    messages: list[CheckMessage] = []
    aliases: set[str] = set()
    for entry in _entries():
        options = site_options(entry)
        aliases |= {each.using for each in options}
        if len(options) > 1:
            messages.append(
                CheckWarning(
                    f"The URL pattern {str(getattr(entry, 'pattern', entry))!r} is given to "
                    f"retry_requests twice: only the options of the first call count.",
                    hint="Leave one of the calls out.",
                    id="django_pooled.W021",
                )
            )
    return [*(_refusal(alias) for alias in sorted(aliases) if not _is_ours(alias)), *messages]


def _refusal(alias: str) -> CheckMessage:
    if alias in settings.DATABASES:
        engine = settings.DATABASES[alias].get("ENGINE")
        found = f"DATABASES[{alias!r}]['ENGINE'] is {engine!r}"
    else:
        found = f"DATABASES has {', '.join(map(repr, settings.DATABASES))}"
    return Error(
        f"retry_requests(using={alias!r}) needs a database with ENGINE 'django_pooled'; {found}. "
        f"Every request to its views would fail.",
        hint="Name such a database, or leave `using` out for 'default'.",
        id="django_pooled.E005",
    )


def _is_ours(alias: str) -> bool:
    entry = settings.DATABASES.get(alias)
    if entry is None:
        return False
    try:
        # No database, or a stand-in for one that is configured while the site runs: it says so.
        is_stand_in = issubclass(load_backend(entry["ENGINE"]).DatabaseWrapper, NoDatabase)
        return is_stand_in or is_ours(entry)
    except ImproperlyConfigured:
        # Django reports an ENGINE that cannot be loaded, at each use.
        return True


def _entries() -> Iterator[object]:
    try:
        patterns: Iterable[object] = get_resolver().url_patterns
        yield from _within(patterns)
    except (ImportError, ImproperlyConfigured):
        # Django's own checks report it.
        return


def _within(patterns: Iterable[object]) -> Iterator[object]:
    for entry in patterns:
        yield entry
        if isinstance(entry, URLResolver):
            yield from _within(entry.url_patterns)
