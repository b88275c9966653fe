"""Credentials in settings that are fetched: callables, and what they may return."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from inspect import isawaitable, iscoroutine, iscoroutinefunction
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured

from django_pooled.diagnostics.redaction import remember

from .misplaced_options import connection_parameters

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg

__all__ = ["are_fetched", "connect_aside", "refuse_coroutines", "resolved", "settled"]

_FETCHED = ("user", "password")
_SETTINGS = {
    "user": "USER",
    "password": "PASSWORD",
    "host": "HOST",
    "port": "PORT",
    "dbname": "NAME",
}


def are_fetched(params: Mapping[str, Any], credentials: Callable[..., Any] | None) -> bool:
    """Tell whether another connection may get other credentials."""
    return credentials is not None or any(callable(params.get(key)) for key in _FETCHED)


def resolved(
    params: Mapping[str, Any], credentials: Callable[..., Any] | None = None
) -> dict[str, Any]:
    """Call the callables among the credentials, such as one that fetches a token.

    An error of a callable is waited out, unless it says that waiting will not help: see
    `connect_errors.is_mistake`.

    Args:
        params: psycopg's connection parameters; the user and the password may be callables.
        credentials: The option of the pool.

    Raises:
        TypeError: A callable has returned what cannot be used.
    """
    found = dict(params)
    if credentials is not None:
        found.update(_parameters(credentials()))
    for key in _FETCHED:
        if callable(found.get(key)):
            found[key] = _text(key.upper(), found[key]())
    if are_fetched(params, credentials):
        remember(found.get("password"))
    return found


def connect_aside(
    settings: Mapping[str, Any], params: Mapping[str, Any], **more: Any
) -> psycopg.Connection[Any]:
    """Open a connection outside of the pool, with its credentials and its way to connect.

    Args:
        settings: An entry of ``settings.DATABASES``.
        params: Connection parameters for it, as Django works them out.
        more: Others, which win. What concerns Django's cursors and types is left out.
    """
    # Here, since the system checks have to be imported without it.
    import psycopg

    parameters = resolved(params, _option(settings, "credentials"))
    for name in ("context", "cursor_factory", "prepare_threshold", "autocommit"):
        parameters.pop(name, None)
    connect = _option(settings, "connect") or psycopg.connect
    made: psycopg.Connection[Any] = connect(**{**parameters, **more})
    return made


def settled(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry of ``settings.DATABASES`` with what its callables return, for now."""
    given = {key: settings.get(_SETTINGS[key]) for key in _FETCHED}
    made = {**settings, "OPTIONS": dict(settings.get("OPTIONS", {}))}
    for key, value in resolved(given, _option(settings, "credentials")).items():
        if key in _SETTINGS:
            made[_SETTINGS[key]] = value
        else:
            made["OPTIONS"][key] = value
    return made


def refuse_coroutines(alias: str, settings: Mapping[str, Any]) -> None:
    """Refuse coroutine functions: connections are opened in threads without an event loop.

    Args:
        alias: The key of the entry of ``settings.DATABASES``, for the message.
        settings: The entry.

    Raises:
        ImproperlyConfigured: There is one.
    """
    options = settings.get("OPTIONS") or {}
    places = {f"[{key!r}]": settings.get(key) for key in ("USER", "PASSWORD")}
    places |= {f"['OPTIONS'][{key!r}]": options.get(key) for key in _FETCHED}
    for key in ("credentials", "connect"):
        places[f"['OPTIONS']['pool'][{key!r}]"] = _option(settings, key)
    for place, value in places.items():
        call = getattr(type(value), "__call__", None)  # noqa: B004 - of an object's class
        if iscoroutinefunction(value) or iscoroutinefunction(call):
            raise ImproperlyConfigured(
                f"DATABASES[{alias!r}]{place} is a coroutine function; expected a plain function, "
                f"since it is called in a thread without an event loop."
            )


def _option(settings: Mapping[str, Any], name: str) -> Callable[..., Any] | None:
    pool = settings.get("OPTIONS", {}).get("pool")
    return pool.get(name) if isinstance(pool, Mapping) else None


def _parameters(found: object) -> dict[str, Any]:
    where = "OPTIONS['pool']['credentials']"
    if not isinstance(found, Mapping):
        raise TypeError(
            f"{where} returned {_kind(found)}; expected a dict of connection parameters"
        )
    for name, value in found.items():
        if name not in connection_parameters():
            near = difflib.get_close_matches(str(name), connection_parameters(), n=1, cutoff=0.4)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise TypeError(
                f"{where} returned {name!r}, which is not a connection parameter; expected names "
                f"that libpq or psycopg knows, such as 'user' and 'password'.{hint}"
            )
        if name in _FETCHED:
            _text(f"{where} [{name!r}]", value)
    return dict(found)


def _text(place: str, value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise TypeError(f"{place} returned {_kind(value)}; expected a str")


def _kind(value: object) -> str:
    if iscoroutine(value):
        value.close()  # Else Python warns that it was never awaited.
    return "something to be awaited" if isawaitable(value) else type(value).__name__
