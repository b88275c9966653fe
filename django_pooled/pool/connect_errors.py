"""Why an attempt to open a connection failed, and whether waiting will help."""

from __future__ import annotations

import re

import psycopg
from django.core.exceptions import ImproperlyConfigured

from django_pooled.diagnostics.redaction import told
from django_pooled.lazy_pattern import lazy_pattern
from django_pooled.sql.sqlstates import FULL, history, is_connection_lost, psycopg_error

__all__ = [
    "AttemptFailed",
    "AttemptHung",
    "answer_in",
    "is_mistake",
    "is_permanent_refusal",
    "is_server_full",
    "is_wrong_kind",
    "refuses_credentials",
]

# libpq hands over no SQLSTATE for errors while connecting, only the server's or its own words
# (PQerrorMessage). Waiting does not help with these. All others, those of a server with
# translated messages included, count as transient and are shown as the cause. What platforms put
# before the server has words of its own, most of them without a SQLSTATE that tells anything.
_PERMANENT = lazy_pattern(
    r"""
      authentication\ failed                       # password, SASL, LDAP, PAM, Peer, Ident, …
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
    | invalid\ (\w+\ value:|integer\ value\ |port\ number|SSL\ protocol\ version\ range)
    | could\ not\ match\ \d+\ .*\ to\ \d+           # HOST and PORT of different lengths
    # PgBouncer
    | no\ such\ (database|user) | unsupported\ startup\ parameter
    | database\ ".*"\ is\ disabled | SSL\ required$ | login\ rejected$
    # Azure: expired, of another tenant, for another audience
    | access\ token
    # RDS Proxy
    | RDS\ Proxy\ (currently\ doesn't\ support|requires\ TLS) | only\ with\ SSL\ connections
    | has\ no\ credentials\ for\ the\ role | provided\ for\ the\ role\ .*\ is\ wrong
    # Supavisor
    | tenant(/|\ or\ )user\ .*not\ found | no\ tenant\ identifier
    | address\ not\ in\ tenant\ allow_list | SSL\ connection\ is\ required
    # Neon
    | endpoint\ (cannot\ be\ found|is\ disabled) | Endpoint\ ID\ is\ not\ specified
    | not\ allowed\ to\ connect\ to\ this\ endpoint | from\ a\ blocked\ network
    | connection\ is\ insecure | exceeded\ the\ .*\ quota
    """,
    re.VERBOSE | re.IGNORECASE,
)

# With several hosts one message lists every attempt: as long as one of them may succeed
# later, the whole is transient.
_TRANSIENT = lazy_pattern(
    r"""
      Connection\ refused | timeout\ expired | timed\ out | Connection\ reset
    | starting\ up | shutting\ down | in\ recovery\ mode | not\ yet\ accepting\ connections
    | server\ closed\ the\ connection | No\ route\ to\ host | Network\ is\ unreachable
    | could\ not\ translate\ host\ name | failed\ to\ resolve\ host | no\ answer\ after
    | session\ is\ (not\ )?read-only | server\ is\ (not\ )?in\ hot\ standby
    """,
    re.VERBOSE,
)

# What newer credentials may mend; of several hosts, another may be away.
_CREDENTIALS = lazy_pattern(
    r"""
      authentication\ failed(?!\ because\ of\ too\ many) | no\ password\ supplied
    | role\ ".*"\ (does\ not\ exist|is\ not\ permitted\ to\ log\ in)
    | login\ rejected$ | no\ such\ user               # PgBouncer
    | access\ token | provided\ for\ the\ role\ .*\ is\ wrong      # Azure, RDS Proxy
    | tenant(/|\ or\ )user\ .*not\ found               # Supavisor
    | alert\ (bad\ certificate|(unsupported\ )?certificate\ (expired|revoked))
    """,
    re.VERBOSE | re.MULTILINE | re.IGNORECASE,
)

# What libpq says of a server that is not what target_session_attrs asks for.
_WRONG_KIND = lazy_pattern(r"session is (not )?read-only|server is (not )?in hot standby")

# Transient too, those of FULL.
_FULL = lazy_pattern(
    r"""
      too\ many\ clients\ already | remaining\ connection\ slots\ are\ reserved
    | too\ many\ connections\ for\ (role|database)
    # PgBouncer
    | no\ more\ connections\ allowed | client\ connections\ exceeded
    # Supavisor
    | max\ client(s|\ connections)\ reached | unable\ to\ check\ out\ connection
    # RDS Proxy
    | client\ connections\ to\ the\ proxy\ exceeded | rate\ of\ connection\ to\ proxy\ exceeded
    | timed-out\ waiting\ to\ acquire | too\ many\ competing\ requests
    # Neon
    | too\ many\ connections\ (to\ this\ endpoint|attempts) | too\ many\ database\ connection
    """,
    re.VERBOSE | re.IGNORECASE,
)

# The first that fits: the more general ones come later.
_ANSWERS = (
    (
        lazy_pattern(r"too many connections for role"),
        "has no connection left for this role (53300)",
    ),
    (_FULL, "is full (53300)"),
    (
        lazy_pattern(r"(password|SASL) authentication failed|no password supplied"),
        "refuses this role's password (28P01)",
    ),
    (lazy_pattern(r"access token"), "refuses this role's access token"),
    (lazy_pattern(r'role ".*" does not exist|no such user'), "does not know this role"),
    (
        lazy_pattern(
            r"authentication failed|pg_hba\.conf|not permitted to log in|login rejected"
            r"|permission denied for database"
        ),
        "refuses this role",
    ),
    (
        lazy_pattern(r'database ".*" does not exist|no such database'),
        "does not exist on its server (3D000)",
    ),
    (
        lazy_pattern(r"starting up|not yet accepting connections|in recovery mode"),
        "is starting (57P03)",
    ),
    (lazy_pattern(r"shutting down"), "is shutting down (57P03)"),
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

# Users do not get the two below: their `CheckoutTimeout` or `ConnectFailed` has the words of these.


class AttemptFailed(Exception):
    """What the project brings to a new connection failed; ``__cause__`` is its own error.

    Attributes:
        permanent: Whether waiting will not help.
    """

    def __init__(self, what: str, error: BaseException, *, permanent: bool = False) -> None:
        kind, words = type(error).__name__, told(error)
        super().__init__(f"{what} raised {kind}" + (f": {words}" if words != kind else ""))
        self.__cause__ = error
        self.permanent = permanent


class AttemptHung(psycopg.errors.ConnectionTimeout):
    """An attempt was given up, since one of its steps took too long.

    Attributes:
        wait: Seconds that the next attempt has to wait, at least.
    """

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


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
    if found.sqlstate is not None or not isinstance(found, psycopg.OperationalError):
        return not is_connection_lost(found) and not (found.sqlstate or "").startswith("53")
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


def refuses_credentials(error: BaseException) -> bool:
    """Tell whether a server has refused the user, the password or the certificate."""
    return isinstance(error, psycopg.OperationalError) and bool(_CREDENTIALS.search(str(error)))


def is_wrong_kind(error: BaseException) -> bool:
    """Tell whether a server has answered, and is not what ``target_session_attrs`` asks for."""
    return _WRONG_KIND.search(str(error)) is not None


def answer_in(text: str) -> str:
    """Say how a database has answered, by the text of an error while opening a connection.

    Returns:
        What follows the database's name: "is full (53300)", or "does not answer" if it is nothing
        that is known.
    """
    return next((words for fits, words in _ANSWERS if fits.search(text)), "does not answer")
