"""``OPTIONS["pool"]`` as written in settings, made into a frozen dataclass or refused."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from math import isfinite
from os import PathLike
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from django_pooled.diagnostics.redaction import remember_settings, shown
from django_pooled.pool.backoff import Backoff

from .foreign_options import name_here, refuse_leftovers

__all__ = ["PoolOptions", "is_ours", "is_pooled", "parse"]


@dataclass(frozen=True)
class _Expected:
    """What a value has to be: a test, and the words for it."""

    words: str
    test: Callable[[Any], bool]


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_SECONDS = _Expected("a number of seconds above 0", lambda v: _number(v) and v > 0)
_SECONDS_OR_ZERO = _Expected("a number of seconds, 0 or more", lambda v: _number(v) and v >= 0)
_SECONDS_OR_NONE = _Expected(
    "a number of seconds above 0, or None", lambda v: v is None or (_number(v) and v > 0)
)
_COUNT = _Expected("a whole number, 0 or more", lambda v: _whole(v) and v >= 0)
_COUNT_FROM_ONE = _Expected("a whole number, 1 or more", lambda v: _whole(v) and v >= 1)
_CALLABLE_OR_NONE = _Expected("a callable or None", lambda v: v is None or callable(v))
_FLAG = _Expected("True or False", lambda v: isinstance(v, bool))


def _option(default: Any, expected: _Expected) -> Any:
    return field(default=default, metadata={"expected": expected})


@dataclass(frozen=True)
class PoolOptions:
    """The options of one pool; times are float seconds.

    Names that psycopg_pool has keep its meaning:
    https://www.psycopg.org/psycopg3/docs/api/pool.html
    """

    min_size: int = _option(1, _COUNT)
    """Connections kept open even when idle."""
    max_size: int = _option(10, _COUNT_FROM_ONE)
    """Most connections this process opens to this database."""
    timeout: float = _option(30.0, _SECONDS)
    """Longest a checkout takes, connecting included."""
    max_waiting: int = _option(0, _COUNT)
    """Waiters beyond which a checkout is refused at once; 0 for no limit."""
    max_lifetime: float = _option(1800.0, _SECONDS)
    """Age at which a connection is replaced, shortened at random by up to a tenth."""
    max_idle: float = _option(600.0, _SECONDS)
    """Idle time after which connections beyond min_size are closed."""
    pool_mode: str = _option(
        "session",
        _Expected("'session' or 'transaction'", lambda v: v in ("session", "transaction")),
    )
    """What a checkout lasts for, in PgBouncer's words."""
    check_after: float = _option(30.0, _SECONDS_OR_ZERO)
    """Idle time from which a checkout makes a round trip; below it, it looks at the socket."""
    check_timeout: float = _option(5.0, _SECONDS)
    """Longest that round trip may take."""
    backoff: Backoff = _option(
        Backoff(),
        _Expected(
            "a dict with 'initial' and 'maximum' (seconds above 0) and 'jitter' (True or False)",
            lambda v: isinstance(v, Backoff),
        ),
    )
    """Waits between attempts to connect."""
    reset: str | Callable[..., None] | None = _option(
        "auto",
        _Expected(
            "'auto', 'rollback', 'discard' or a callable",
            lambda v: v in ("auto", "rollback", "discard", None) or callable(v),
        ),
    )
    """What happens to a connection at checkin: an open transaction is rolled back, and all session
    state goes too with 'discard', and with 'auto' where a statement may have left any."""
    check: Callable[..., None] | None = _option(None, _CALLABLE_OR_NONE)
    """Called with the connection at each checkout, after our own check; raises if it is bad.
    It has check_timeout."""
    leak_after: float | None = _option(None, _SECONDS_OR_NONE)
    """Seconds in use after which the log tells where a connection was checked out."""
    stats_dir: str | PathLike[str] | bool | None = _option(
        None,
        _Expected(
            "a folder's path, None for the default, or False to turn it off",
            lambda v: v is None or v is False or isinstance(v, (str, PathLike)),
        ),
    )
    """Folder of the sockets that `manage.py poolstats` asks."""
    application_name: bool = _option(True, _FLAG)
    """Whether sessions are named 'django PID@HOST' in pg_stat_activity."""
    sql_comments: bool | str = _option(
        False,
        _Expected(
            "True, False or the application's name",
            lambda v: isinstance(v, bool) or (isinstance(v, str) and v != ""),
        ),
    )
    """Whether each statement ends in a comment that names the view or task, and the application
    if its name is given."""
    name: str | None = _option(
        None, _Expected("a string or None", lambda v: v is None or isinstance(v, str))
    )
    """psycopg_pool's name for the pool, in its log lines."""
    reconnect_timeout: float = _option(300.0, _SECONDS_OR_ZERO)
    """How long the server is looked for when nobody waits for a connection."""
    reconnect_failed: Callable[..., None] | None = _option(None, _CALLABLE_OR_NONE)
    """Called with the pool when that time has passed without a success, whatever the failure."""
    retry_budget: int = _option(100, _COUNT)
    """Restarts of transactions that may be made beyond one for each commit; 0 for no limit."""
    num_workers: int = _option(1, _COUNT_FROM_ONE)
    """Threads for maintenance; connections are opened in threads of their own."""


_EXPECTED: dict[str, _Expected] = {f.name: f.metadata["expected"] for f in fields(PoolOptions)}
_DEFAULTS: dict[str, Any] = {f.name: f.default for f in fields(PoolOptions)}
assert MISSING not in _DEFAULTS.values()

# Options of psycopg_pool's constructor that the backend decides itself, and what to do instead.
_TAKEN = {
    "conninfo": "use HOST, PORT, NAME, USER, PASSWORD and OPTIONS",
    "kwargs": "put them into OPTIONS",
    "connection_class": "the backend brings its own",
    "configure": "connect to the signal django.db.backends.signals.connection_created",
    "open": "the pool opens at the first checkout",
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
        # Django's words first, which may be looked for.
        raise ImproperlyConfigured(
            f"Pooling doesn't support persistent connections. DATABASES[{alias!r}]"
            f"['CONN_MAX_AGE'] is {shown(max_age)}; expected 0, since the pool keeps connections "
            f"open: limit their age with OPTIONS['pool']['max_lifetime']."
        )
    refuse_leftovers(alias, settings_dict)
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
    return options


def is_ours(settings_dict: Mapping[str, Any]) -> bool:
    """Tell whether an entry of ``settings.DATABASES`` uses this backend or one built on it."""
    from django.db.utils import load_backend

    from .wrapper import DatabaseWrapper

    wrapper = load_backend(settings_dict["ENGINE"]).DatabaseWrapper
    return isinstance(wrapper, type) and issubclass(wrapper, DatabaseWrapper)


def is_pooled(settings_dict: Mapping[str, Any]) -> bool:
    """Tell whether an entry of ``settings.DATABASES`` has a pool of this backend.

    With ``OPTIONS["pool"] = False`` it has none.
    """
    return is_ours(settings_dict) and settings_dict.get("OPTIONS", {}).get("pool") is not False


def _backoff(alias: str, given: object) -> object:
    if not isinstance(given, Mapping):
        return given
    expected = {"initial": _SECONDS, "maximum": _SECONDS, "jitter": _FLAG}
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


def _refuse_unknown(
    alias: str, given: Mapping[str, Any], known: Mapping[str, _Expected], where: str
) -> None:
    for key in given:
        if key in known:
            continue
        if where == "pool" and key in _TAKEN:
            place, instead = _place(alias, where, key), _TAKEN[key]
            raise ImproperlyConfigured(f"{place} is given; expected nothing here: {instead}.")
        near = difflib.get_close_matches(str(key).lower(), known, n=1, cutoff=0.5)
        meant = (name_here(key) if where == "pool" else None) or next(iter(near), None)
        hint = f" Did you mean {meant!r}?" if meant else ""
        raise ImproperlyConfigured(
            f"{_place(alias, where, key)}{_of_unknown(given[key])} is not an option; expected "
            f"one of {', '.join(sorted(known))}.{hint}"
        )


def _refusal(
    alias: str, where: str, key: str, value: object, expected: str
) -> ImproperlyConfigured:
    return ImproperlyConfigured(
        f"{_place(alias, where, key)} is {shown(value)}; expected {expected}."
    )


def _place(alias: str, where: str, key: object) -> str:
    inner = "['pool']" if where == "pool" else "['pool']['backoff']"
    return f"DATABASES[{alias!r}]['OPTIONS']{inner}[{shown(key)}]"


def _of_unknown(value: object) -> str:
    """Say what an unknown option is, unless that may be a secret: a password in a wrong place."""
    return f" = {value!r}" if isinstance(value, (bool, int, float, type(None))) else ""
