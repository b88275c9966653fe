"""The options of one pool: what each may be, and its default."""

from __future__ import annotations

from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple

from .backoff import Backoff
from .lanes import LaneOptions
from .seconds import is_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["CONNECT_TIMEOUT", "FLAG", "LANE", "SECONDS", "Expected", "PoolOptions"]


CONNECT_TIMEOUT = 10
"""Seconds that each step of an attempt to connect may take, unless the settings say otherwise."""


class Expected(NamedTuple):
    """What a value has to be: a test, and the words for it."""

    words: str
    test: Callable[[Any], bool]


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


SECONDS = Expected("a number of seconds above 0", lambda v: is_seconds(v) and v > 0)
_SECONDS_OR_ZERO = Expected("a number of seconds, 0 or more", lambda v: is_seconds(v) and v >= 0)
_SECONDS_OR_NONE = Expected(
    "a number of seconds above 0, or None", lambda v: v is None or (is_seconds(v) and v > 0)
)
_COUNT = Expected("a whole number, 0 or more", lambda v: _whole(v) and v >= 0)
_COUNT_FROM_ONE = Expected("a whole number, 1 or more", lambda v: _whole(v) and v >= 1)
_CALLABLE_OR_NONE = Expected("a callable or None", lambda v: v is None or callable(v))
FLAG = Expected("True or False", lambda v: isinstance(v, bool))
LANE = {
    "reserved": _COUNT,
    "max": Expected(
        "a whole number, 1 or more, or None", lambda v: v is None or (_whole(v) and v >= 1)
    ),
    "queue_target": _SECONDS_OR_NONE,
}
"""What the options of a lane have to be."""


def _option(default: Any, expected: Expected) -> Any:
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
    timeout: float = _option(30.0, SECONDS)
    """Longest a checkout takes, connecting included."""
    max_waiting: int = _option(0, _COUNT)
    """Waiters beyond which a checkout is refused at once; 0 for no limit."""
    queue_target: float | None = _option(None, _SECONDS_OR_NONE)
    """Wait that a checkout may have in an overload; see `QueueDelay`. None for no bound."""
    queue_interval: float = _option(1.0, SECONDS)
    """Time in which every wait has to be above queue_target, before any checkout is refused."""
    lanes: Mapping[str, LaneOptions] | None = _option(
        None,
        Expected(
            "a dict of lanes, such as {'admin': {'reserved': 1}, 'task': {'max': 4}}, or None",
            lambda v: (
                v is None
                or (
                    isinstance(v, dict)
                    and all(isinstance(options, LaneOptions) for options in v.values())
                )
            ),
        ),
    )
    """The limits of each kind of work; see `Admission`. None for no lanes."""
    max_lifetime: float = _option(1800.0, SECONDS)
    """Age at which a connection is replaced, shortened at random by up to a tenth."""
    max_idle: float = _option(600.0, SECONDS)
    """Idle time after which connections beyond min_size are closed."""
    open_at_start: bool = _option(False, FLAG)
    """Whether the pool is opened as a worker starts, and is ready once it has min_size."""
    keepalive: float | None = _option(None, _SECONDS_OR_NONE)
    """Idle time after which a connection is sent a round trip, before anything cuts it."""
    use_lifo: bool = _option(False, FLAG)
    """Whether a checkout takes the connection that came back last, and not the one idle longest."""
    pool_mode: str = _option(
        "session",
        Expected("'session' or 'transaction'", lambda v: v in ("session", "transaction")),
    )
    """What a checkout lasts for, in PgBouncer's words."""
    check_after: float = _option(30.0, _SECONDS_OR_ZERO)
    """Idle time from which a checkout makes a round trip; below it, it looks at the socket."""
    check_timeout: float = _option(5.0, SECONDS)
    """Longest that round trip may take."""
    backoff: Backoff = _option(
        Backoff(),
        Expected(
            "a dict with 'initial' and 'maximum' (seconds above 0) and 'jitter' (True or False)",
            lambda v: isinstance(v, Backoff),
        ),
    )
    """Waits between attempts to connect."""
    reset: str | Callable[..., None] | None = _option(
        "auto",
        Expected(
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
        Expected(
            "a folder's path, None for the default, or False to turn it off",
            lambda v: v is None or v is False or isinstance(v, (str, PathLike)),
        ),
    )
    """Folder of the sockets that `manage.py poolstats` asks."""
    application_name: bool = _option(True, FLAG)
    """Whether sessions are named 'django PID@HOST' in pg_stat_activity."""
    pipeline: bool = _option(True, FLAG)
    """Whether BEGIN, SAVEPOINT and RELEASE travel in one message with the next statement."""
    sql_comments: bool | str = _option(
        False,
        Expected(
            "True, False or the application's name",
            lambda v: isinstance(v, bool) or (isinstance(v, str) and v != ""),
        ),
    )
    """Whether each statement ends in a comment that names the view or task, and the application
    if its name is given."""
    read_only: bool | None = _option(
        None, Expected("True, False or None", lambda v: v is None or isinstance(v, bool))
    )
    """Whether the server is meant to be read-only, as a replica. With False a read-only one is not
    ready; with None it is, and is a fault from the first write that it refuses."""
    show_statements: bool = _option(False, FLAG)
    """Whether `manage.py poolstats` shows statements under way, with ? for each of their values."""
    credentials: Callable[..., Any] | None = _option(None, _CALLABLE_OR_NONE)
    """Returns connection parameters to connect with, such as user and password together."""
    credentials_lifetime: float = _option(0.0, _SECONDS_OR_ZERO)
    """Seconds for which credentials that were fetched are used again; 0 fetches them for each
    connection."""
    connect: Callable[..., Any] | None = _option(None, _CALLABLE_OR_NONE)
    """Opens each connection in place of psycopg: called with the connection parameters, it returns
    an open psycopg connection."""
    name: str | None = _option(
        None, Expected("a string or None", lambda v: v is None or isinstance(v, str))
    )
    """psycopg_pool's name for the pool, in its log lines."""
    reconnect_timeout: float = _option(300.0, _SECONDS_OR_ZERO)
    """How long connecting is tried while no thread waits for a connection."""
    reconnect_failed: Callable[..., None] | None = _option(None, _CALLABLE_OR_NONE)
    """Called with the pool when that time has passed without a success, whatever the failure."""
    retry_budget: int = _option(100, _COUNT)
    """Restarts of transactions that may be made beyond one for each commit; 0 for no limit."""
    num_workers: int = _option(1, _COUNT_FROM_ONE)
    """Threads for maintenance; connections are opened in threads of their own."""
