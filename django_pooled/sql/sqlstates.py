"""What a database error means: SQLSTATEs in named sets, and errors that carry none."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import psycopg
from django.core.exceptions import ImproperlyConfigured

from django_pooled.errors import PoolError

from .connect_errors import AttemptFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "CONNECTION_LOST",
    "FULL",
    "READ_ONLY",
    "SERIALIZATION",
    "UNKNOWN_OUTCOME",
    "history",
    "is_connection_lost",
    "is_mistake",
    "is_permanent_refusal",
    "is_refusal",
    "is_server_away",
    "is_server_full",
    "is_stale_plan",
    "psycopg_error",
    "sqlstate_of",
]

# Names as in https://www.postgresql.org/docs/current/errcodes-appendix.html
SERIALIZATION = frozenset({"40001", "40P01"})
"""serialization_failure and deadlock_detected: the same transaction can succeed if run again."""

UNKNOWN_OUTCOME = frozenset({"08007", "40003"})
"""transaction_resolution_unknown and statement_completion_unknown: whoever says so can't tell."""

CONNECTION_LOST = frozenset({"57P01", "57P02", "57P03", "57P05"})
"""admin_shutdown, crash_shutdown, cannot_connect_now, idle_session_timeout.

Class 08 (connection exceptions) belongs to them too: see `is_connection_lost`.
"""

FULL = "53300"
"""too_many_connections: the server, the database or the role has no room for another."""

# feature_not_supported, syntax_error_or_access_rule_violation, and what functions in their place
# may raise. A time limit, or a lack of memory, says nothing of the next time.
_REFUSALS = ("0A", "3F", "42", "55", "P0", "XX")

READ_ONLY = "25006"
"""read_only_sql_transaction: after a failover, the sign of a demoted server."""

# libpq hands over no SQLSTATE for errors while connecting, only the server's or its own words
# (PQerrorMessage). These are the ones that waiting does not mend; whatever is not recognised,
# a server with translated messages included, counts as transient and is shown as the cause.
_PERMANENT = re.compile(
    r"""
      authentication\ failed                       # password, SASL, LDAP, Peer, Ident, …
    | no\ password\ supplied
    | role\ ".*"\ (does\ not\ exist|is\ not\ permitted\ to\ log\ in)
    | database\ ".*"\ (does\ not\ exist|is\ not\ currently\ accepting\ connections)
    | permission\ denied\ for\ database
    | no\ pg_hba\.conf\ entry | pg_hba\.conf\ rejects
    | server\ does\ not\ support\ SSL | certificate\ verify\ failed
    | server\ certificate\ for\ ".*"\ .*does\ not\ match
    | requires\ a\ valid\ client\ certificate
    | alert\ (unknown\ ca|bad\ certificate|(unsupported\ )?certificate|protocol\ version)
    | authentication\ method\ requirement\ ".*"\ failed | channel\ binding\ required
    | GSSAPI\ encryption\ required
    | (root\ certificate|certificate|private\ key)\ file\ ".*"
    | definition\ of\ service\ ".*"\ not\ found
    | unrecognized\ configuration\ parameter | invalid\ value\ for\ parameter
    | invalid\ (\w+\ value:|port\ number|SSL\ protocol\ version\ range)
    | could\ not\ match\ \d+\ .*\ to\ \d+           # HOST and PORT of different lengths
    # PgBouncer
    | no\ such\ (database|user) | unsupported\ startup\ parameter
    | database\ ".*"\ is\ disabled | SSL\ required$ | login\ rejected$
    """,
    re.VERBOSE,
)

# With several hosts one message lists every attempt: as long as one of them may succeed
# later, the whole is transient.
_TRANSIENT = re.compile(
    r"""
      Connection\ refused | timeout\ expired | timed\ out | Connection\ reset
    | starting\ up | shutting\ down | in\ recovery\ mode | not\ yet\ accepting\ connections
    | server\ closed\ the\ connection | No\ route\ to\ host | Network\ is\ unreachable
    | could\ not\ translate\ host\ name | failed\ to\ resolve\ host
    | session\ is\ (not\ )?read-only | server\ is\ (not\ )?in\ hot\ standby
    """,
    re.VERBOSE,
)

# Transient too, those of FULL.
_FULL = re.compile(
    r"""
      too\ many\ clients\ already | remaining\ connection\ slots\ are\ reserved
    | too\ many\ connections\ for\ (role|database)
    # PgBouncer, Supavisor
    | no\ more\ connections\ allowed | client\ connections\ exceeded
    | [Mm]ax\ client\ connections\ reached
    """,
    re.VERBOSE,
)

# What no network brings about: an error in the project's code or settings.
_MISTAKES = (
    AttributeError,
    ImportError,
    NameError,
    NotImplementedError,
    SyntaxError,
    TypeError,
)

# What psycopg says to two answers where it expects one.
_TWO_ENDS = re.compile(r"received \d+ results from command")


def psycopg_error(error: BaseException | None) -> psycopg.Error | None:
    """Find psycopg's error in *error* or in what it was raised from, as Django wraps it."""
    for link in _causes(error):
        if isinstance(link, psycopg.Error) and not isinstance(link, PoolError):
            return link
    return None


def sqlstate_of(error: BaseException | None) -> str | None:
    """Return the five-character SQLSTATE that *error* carries, through Django's wrapping."""
    found = psycopg_error(error)
    return found.sqlstate if found is not None else None


def is_connection_lost(error: BaseException | None) -> bool:
    """Tell whether *error* says that the connection, not the statement, failed.

    psycopg raises an OperationalError without SQLSTATE when the socket breaks or the
    connection is closed already: such an error never came from the server. A session that is
    ended behind PgBouncer says so twice, in the server's words and in PgBouncer's; where psycopg
    expects one answer, to BEGIN or COMMIT, it raises an InternalError with neither.
    """
    found = psycopg_error(error)
    if found is None:
        return False
    if found.sqlstate is None:
        return isinstance(found, psycopg.OperationalError) or (
            isinstance(found, psycopg.InternalError) and _TWO_ENDS.match(str(found)) is not None
        )
    return found.sqlstate in CONNECTION_LOST or found.sqlstate.startswith("08")


def is_server_away(error: BaseException | None) -> bool:
    """Tell whether *error* means that no connection could be had or that one was lost."""
    return any(isinstance(link, PoolError) for link in _causes(error)) or is_connection_lost(error)


def is_refusal(error: psycopg.Error) -> bool:
    """Tell whether the server does not have what was asked for, or not for this role."""
    return not is_connection_lost(error) and (error.sqlstate or "").startswith(_REFUSALS)


def is_stale_plan(error: psycopg.Error) -> bool:
    """Tell whether a prepared statement met tables that have changed since it was prepared.

    feature_not_supported says nothing by itself and the message is translated; the function's
    name in the server is neither: src/backend/utils/cache/plancache.c.
    """
    return error.sqlstate == "0A000" and error.diag.source_function == "RevalidateCachedQuery"


def is_permanent_refusal(error: BaseException) -> bool:
    """Tell whether an error while opening a connection is one that waiting does not mend.

    Errors of the connection's own configuration (time zone, role) carry a SQLSTATE and are
    permanent unless the connection was lost meanwhile; the others are known by their text.
    What came of a network's error is transient. What the project brings says so itself.
    """
    if isinstance(error, AttemptFailed):
        return error.permanent
    found = psycopg_error(error)
    if found is None:
        return not _came_of_the_network(error)
    if not isinstance(found, psycopg.OperationalError):
        return True
    if found.sqlstate is not None:
        return not is_connection_lost(found) and not found.sqlstate.startswith("53")
    text = str(found)
    return bool(_PERMANENT.search(text)) and not (_TRANSIENT.search(text) or _FULL.search(text))


def is_mistake(error: BaseException) -> bool:
    """Tell whether what fetches credentials failed for a reason that waiting will not help.

    The libraries that fetch tokens have their own exceptions for a network that is away, many of
    which are no OSError. So everything is transient but what says otherwise: ImproperlyConfigured,
    and the errors of code itself (TypeError, NameError, ImportError and their like), unless an
    OSError led to them.
    """
    if isinstance(error, ImproperlyConfigured):
        return True
    return isinstance(error, _MISTAKES) and not _came_of_the_network(error)


def _came_of_the_network(error: BaseException) -> bool:
    return any(isinstance(link, OSError) for link in history(error))


def is_server_full(error: BaseException) -> bool:
    """Tell whether an error while opening a connection is that there is no room for another.

    With several hosts, each that was tried has to be full: one that is away may be back at once.
    """
    found = psycopg_error(error)
    if found is None:
        return False
    if found.sqlstate is not None:
        return found.sqlstate == FULL
    text = str(found)
    return bool(_FULL.search(text)) and not _TRANSIENT.search(text)


def history(error: BaseException | None) -> Iterator[BaseException]:
    """Yield *error* and all that it was raised from or while handling, ``from None`` or not."""
    seen: set[int] = set()
    todo = [error]
    while todo:
        link = todo.pop()
        if link is not None and id(link) not in seen:
            yield link
            seen.add(id(link))
            todo += [link.__context__, link.__cause__]


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__
