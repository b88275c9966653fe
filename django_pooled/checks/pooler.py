"""Features that do not work behind another pooler: W012 to W015, and W018."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.core.checks import CheckMessage
from django.core.checks import Warning as CheckWarning

from .capacity import Limit, check_capacity
from .idle_timeouts import check_timeouts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from django_pooled.pool.options import PoolOptions
    from django_pooled.poolstats.server.pgbouncer_console import PoolerFacts

    from .declared_processes import Workers

__all__ = ["check_pooler"]


def check_pooler(
    alias: str,
    entry: Mapping[str, Any],
    options: PoolOptions,
    pooler: PoolerFacts | None,
    workers: Sequence[Workers],
    live: Mapping[str, int],
) -> list[CheckMessage]:
    """Say what does not hold, as far as the pooler tells of itself; without that, what may not."""
    messages = [_two_pools(alias, pooler)]
    if pooler is None or pooler.pool_mode != "session":
        messages += _shared_sessions(alias, entry, options, pooler)
    if pooler is not None:
        limits = list(_limits(alias, options, pooler))
        messages += check_capacity(alias, limits, workers, live)
        limit = pooler.client_idle_timeout
        messages += check_timeouts(alias, options, limit, "client_idle_timeout", "PgBouncer")
        messages += _waiting(alias, options, pooler)
    return messages


def _two_pools(alias: str, pooler: PoolerFacts | None) -> CheckMessage:
    if pooler is None:
        what = "PgBouncer or another pooler"
        but = ". How many connections it admits is unknown."
    else:
        what, but = f"PgBouncer in {pooler.pool_mode} mode", "."
    return CheckWarning(
        f"DATABASES[{alias!r}] connects through {what}: connections are pooled twice{but}",
        hint="Set OPTIONS['pool'] to False, or connect to the server itself. Silence this if "
        "both are intended; docs/deploy/pgbouncer.md has the settings of both.",
        id="django_pooled.W012",
    )


def _limits(alias: str, options: PoolOptions, pooler: PoolerFacts) -> Iterator[Limit]:
    most = pooler.max_client_conn
    yield Limit(f"PgBouncer admits {most} (max_client_conn)", most, {alias: options})
    if pooler.pool_mode == "session":
        most = pooler.pool_size
        words = f"PgBouncer in session mode has {most} for all that are open (pool_size)"
        yield Limit(words, most, {alias: options})


def _waiting(alias: str, options: PoolOptions, pooler: PoolerFacts) -> Iterator[CheckMessage]:
    limit = pooler.query_wait_timeout
    if limit is None or limit > options.timeout:
        long = "without a limit" if limit is None else f"for {limit:g} s"
        yield CheckWarning(
            f"DATABASES[{alias!r}]: a statement may wait {long} for one of PgBouncer's connections "
            f"(query_wait_timeout), and a checkout for {options.timeout:g} s (timeout) at most.",
            hint="Set query_wait_timeout in PgBouncer to a few seconds.",
            id="django_pooled.W018",
        )


def _shared_sessions(
    alias: str, entry: Mapping[str, Any], options: PoolOptions, pooler: PoolerFacts | None
) -> Iterator[CheckMessage]:
    given = entry.get("OPTIONS", {})
    if pooler is None:
        where = f"DATABASES[{alias!r}]: if the pooler's pool_mode is transaction,"
    else:
        where = f"DATABASES[{alias!r}]: PgBouncer's pool_mode is {pooler.pool_mode}:"
    follows = pooler is not None and pooler.max_prepared_statements > 0
    # Cursors that bind in the client prepare nothing.
    prepares = given.get("server_side_binding") and given.get("prepare_threshold") is not None
    if prepares and not follows:
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
