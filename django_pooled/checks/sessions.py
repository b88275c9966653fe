"""What ends or shares a pool's sessions behind its back: W011 to W015."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.core.checks import CheckMessage
from django.core.checks import Warning as CheckWarning

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from django_pooled.conf import PoolOptions

    from .facts import ServerFacts

__all__ = ["check_pooler", "check_timeouts"]


def check_timeouts(alias: str, options: PoolOptions, facts: ServerFacts) -> list[CheckMessage]:
    """Check that the server leaves idle sessions alone for as long as the pool keeps them."""
    # The pool lets go of what is beyond min_size.
    name = "max_lifetime" if options.min_size else "max_idle"
    kept, limit = float(getattr(options, name)), facts.idle_session_timeout
    if limit is None or limit >= kept:
        return []
    return [
        CheckWarning(
            f"DATABASES[{alias!r}]: the server ends sessions that were idle for {limit:g} s "
            f"(idle_session_timeout), and the pool keeps idle ones for {kept:g} s ({name}): a "
            f"checkout then opens another.",
            hint=f"Raise it for this role, by ALTER ROLE … SET idle_session_timeout, or set "
            f"min_size to 0 and max_idle below {limit:g}.",
            id="django_pooled.W011",
        )
    ]


def check_pooler(alias: str, entry: Mapping[str, Any], options: PoolOptions) -> list[CheckMessage]:
    """Say what does not hold where another pooler holds the sessions."""
    return [_pooler(alias), *_transaction_mode(alias, entry, options)]


def _pooler(alias: str) -> CheckMessage:
    return CheckWarning(
        f"DATABASES[{alias!r}] leads to PgBouncer or another pooler: it pools what is pooled "
        f"already, and how many connections it admits can't be seen from here.",
        hint="Set OPTIONS['pool'] to False, or lead to the server itself. If both stay: max_size "
        "of all processes together has to fit into the pooler's pool_size.",
        id="django_pooled.W012",
    )


def _transaction_mode(
    alias: str, entry: Mapping[str, Any], options: PoolOptions
) -> Iterator[CheckMessage]:
    given = entry.get("OPTIONS", {})
    # Which mode it has can't be seen.
    where = f"DATABASES[{alias!r}]: if the pooler's pool_mode is transaction,"
    # Cursors that bind in the client prepare nothing.
    if given.get("server_side_binding") and given.get("prepare_threshold") is not None:
        yield CheckWarning(
            f"{where} prepared statements (OPTIONS['prepare_threshold']) fail, being on another "
            f"session.",
            hint="Remove prepare_threshold, or set max_prepared_statements in PgBouncer 1.21 or "
            "later.",
            id="django_pooled.W013",
        )
    state = []
    if given.get("assume_role"):
        state.append("OPTIONS['assume_role']")
    if options.reset == "discard":
        state.append("OPTIONS['pool']['reset'] = 'discard'")
    if state:
        yield CheckWarning(
            f"{where} {' and '.join(state)} reach one session, and transactions run on others.",
            hint="Give the site a role of its own to log in with, and reset sessions in the "
            "pooler.",
            id="django_pooled.W014",
        )
    if not entry.get("DISABLE_SERVER_SIDE_CURSORS"):
        yield CheckWarning(
            f"{where} .iterator() outside of a transaction fails: its cursor is on another "
            f"session.",
            hint="Set DISABLE_SERVER_SIDE_CURSORS to True. Django says the same of poolers.",
            id="django_pooled.W015",
        )
