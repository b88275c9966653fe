"""Timeouts of others that end a pool's sessions: W011."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.core.checks import CheckMessage
from django.core.checks import Warning as CheckWarning

if TYPE_CHECKING:
    from django_pooled.pool.options import PoolOptions

__all__ = ["check_timeouts"]


def check_timeouts(
    alias: str,
    options: PoolOptions,
    limit: float | None,
    setting: str = "idle_session_timeout",
    whose: str = "the server",
) -> list[CheckMessage]:
    """Check that idle connections are left alone for as long as the pool keeps them."""
    # The pool lets go of what is beyond min_size.
    name = "max_lifetime" if options.min_size else "max_idle"
    kept = float(getattr(options, name))
    if limit is None or limit >= kept or (options.keepalive or limit) < limit:
        return []
    raised = "for this role, by ALTER ROLE … SET" if whose == "the server" else "in PgBouncer:"
    return [
        CheckWarning(
            f"DATABASES[{alias!r}]: {whose} ends sessions that were idle for {limit:g} s "
            f"({setting}), and the pool keeps idle ones for {kept:g} s ({name}): a checkout then "
            f"opens another.",
            hint=f"Raise it {raised} {setting}, set keepalive below {limit:g}, or set min_size to "
            f"0 and max_idle below {limit:g}.",
            id="django_pooled.W011",
        )
    ]
