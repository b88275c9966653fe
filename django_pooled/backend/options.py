"""Reads ``OPTIONS["pool"]`` from settings, or refuses it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from django_pooled.diagnostics.redaction import remember_settings, shown
from django_pooled.pool.backoff import Backoff
from django_pooled.pool.lanes import LANES, LaneOptions
from django_pooled.pool.options import FLAG, LANE, SECONDS, Expected, PoolOptions

from .foreign_options import name_here, refuse_leftovers
from .misplaced_options import is_connection_parameter, refuse_misplaced

__all__ = ["parse"]


_EXPECTED: dict[str, Expected] = {f.name: f.metadata["expected"] for f in fields(PoolOptions)}
_DEFAULTS: dict[str, Any] = {f.name: f.default for f in fields(PoolOptions)}
assert MISSING not in _DEFAULTS.values()

# Options of psycopg_pool's constructor that the backend decides itself, and what to do instead.
_TAKEN = {
    "conninfo": "use HOST, PORT, NAME, USER, PASSWORD and OPTIONS",
    "kwargs": "put them into OPTIONS",
    "connection_class": "the backend brings its own",
    "configure": "connect to the signal django.db.backends.signals.connection_created",
    "open": "the pool opens at the first checkout, or with 'open_at_start' as a worker starts",
    "close_returns": "Django's own close() already returns the connection",
}


def parse(alias: str, settings_dict: Mapping[str, Any]) -> PoolOptions:
    """Read the pool's options from one entry of ``settings.DATABASES``.

    Args:
        alias: The entry's key, for messages.
        settings_dict: The entry, with Django's defaults filled in or not.

    Raises:
        ImproperlyConfigured: An unknown option, a wrong type or an impossible value; the
            message names alias, key, value, what was expected, and the nearest known key.
    """
    remember_settings(settings_dict)
    max_age = settings_dict.get("CONN_MAX_AGE", 0)
    if max_age != 0:
        # Django's message first, which people may search for.
        raise ImproperlyConfigured(
            f"Pooling doesn't support persistent connections. DATABASES[{alias!r}]"
            f"['CONN_MAX_AGE'] is {shown(max_age)}; expected 0, since the pool keeps connections "
            f"open: limit their age with OPTIONS['pool']['max_lifetime']."
        )
    refuse_leftovers(alias, settings_dict)
    refuse_misplaced(alias, settings_dict)
    given = settings_dict.get("OPTIONS", {}).get("pool", True)
    if isinstance(given, bool):
        given = {}
    if not isinstance(given, Mapping):
        raise ImproperlyConfigured(
            f"DATABASES[{alias!r}]['OPTIONS']['pool'] is {shown(given)}; expected True, a dict of "
            f"options, or False for connections without a pool."
        )
    values = dict(given)
    _refuse_unknown(alias, values, _EXPECTED, "pool")
    if "backoff" in values:
        values["backoff"] = _backoff(alias, values["backoff"])
    if "lanes" in values:
        values["lanes"] = _lanes(alias, values["lanes"], values.get("queue_target"))
    # As in psycopg_pool, max_size=None is a pool of fixed size; a min_size above our default
    # max_size, with no max_size given, means the same.
    if values.get("max_size", _DEFAULTS["max_size"]) is None:
        values["max_size"] = values.get("min_size", _DEFAULTS["min_size"])
    for key, value in values.items():
        if not _EXPECTED[key].test(value):
            raise _refusal(alias, "pool", key, value, _EXPECTED[key].words)
    if "max_size" not in values:
        values["max_size"] = max(values.get("min_size", 0), _DEFAULTS["max_size"])
    options = PoolOptions(**values)
    if options.max_size < options.min_size:
        raise _refusal(
            alias, "pool", "max_size", options.max_size, f"at least min_size, {options.min_size}"
        )
    if options.keepalive is not None and options.keepalive >= options.max_lifetime:
        below = f"less than max_lifetime, {options.max_lifetime:g}, or None"
        raise _refusal(alias, "pool", "keepalive", options.keepalive, below)
    _refuse_reservations_beyond(alias, options)
    return options


def _backoff(alias: str, given: object) -> object:
    if not isinstance(given, Mapping):
        return given
    expected = {"initial": SECONDS, "maximum": SECONDS, "jitter": FLAG}
    _refuse_unknown(alias, given, expected, "backoff")
    for key, value in given.items():
        if not expected[key].test(value):
            raise _refusal(alias, "backoff", key, value, expected[key].words)
    backoff = Backoff(**given)
    if backoff.maximum < backoff.initial:
        raise _refusal(
            alias, "backoff", "maximum", backoff.maximum, f"at least initial, {backoff.initial}"
        )
    return backoff


def _lanes(alias: str, given: object, queue_target: float | None) -> object:
    if not isinstance(given, Mapping) or not all(isinstance(v, Mapping) for v in given.values()):
        return given
    _refuse_unknown(alias, given, dict.fromkeys(LANES), "lanes")
    found = {}
    for name, options in given.items():
        where = f"lanes.{name}"
        _refuse_unknown(alias, options, LANE, where)
        for key, value in options.items():
            if not LANE[key].test(value):
                raise _refusal(alias, where, key, value, LANE[key].words)
        made = LaneOptions(**{"queue_target": queue_target, **options})
        if made.max is not None and made.max < made.reserved:
            raise _refusal(alias, where, "max", made.max, f"at least reserved, {made.reserved}")
        found[name] = made
    return found


def _refuse_reservations_beyond(alias: str, options: PoolOptions) -> None:
    lanes = options.lanes or {}
    reserved = {name: lanes[name].reserved for name in LANES if name in lanes}
    without = [name for name in LANES if not reserved.get(name)]
    most = options.max_size - 1 if without else options.max_size
    if sum(reserved.values()) > most:
        one = f", so that one is left for {without[0]!r}" if without else ""
        raise _refusal(
            alias,
            "pool",
            "lanes",
            {name: {"reserved": number} for name, number in reserved.items() if number},
            f"at most {most} reserved in all, with max_size {options.max_size}{one}",
        )


def _refuse_unknown(
    alias: str, given: Mapping[str, Any], known: Mapping[str, Any], where: str
) -> None:
    for key in given:
        if key in known:
            continue
        if where == "pool" and key in _TAKEN:
            place, instead = _place(alias, where, key), _TAKEN[key]
            raise ImproperlyConfigured(f"{place} is given; expected nothing here: {instead}.")
        if where == "pool" and is_connection_parameter(key):
            raise ImproperlyConfigured(
                f"{_place(alias, where, key)} is a connection parameter; expected OPTIONS[{key!r}]."
            )
        near = difflib.get_close_matches(str(key).lower(), known, n=1, cutoff=0.5)
        meant = (name_here(key) if where == "pool" else None) or next(iter(near), None)
        hint = f" Did you mean {meant!r}?" if meant else ""
        raise ImproperlyConfigured(
            f"{_place(alias, where, key)}{_of_unknown(given[key])} is not "
            f"{'a lane' if where == 'lanes' else 'an option'}; expected one of "
            f"{', '.join(sorted(known))}.{hint}"
        )


def _refusal(
    alias: str, where: str, key: str, value: object, expected: str
) -> ImproperlyConfigured:
    return ImproperlyConfigured(
        f"{_place(alias, where, key)} is {shown(value)}; expected {expected}."
    )


def _place(alias: str, where: str, key: object) -> str:
    outer = [] if where == "pool" else where.split(".")
    inner = "".join(f"[{part!r}]" for part in ["pool", *outer])
    return f"DATABASES[{alias!r}]['OPTIONS']{inner}[{shown(key)}]"


def _of_unknown(value: object) -> str:
    """Describe the value of an unknown option, unless it may be a secret in a wrong place."""
    return f" = {value!r}" if isinstance(value, (bool, int, float, type(None))) else ""
