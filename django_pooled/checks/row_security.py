"""Row-level security on sessions that keep one user's role and settings for the next: W019."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.core.checks import CheckMessage
from django.core.checks import Warning as CheckWarning

if TYPE_CHECKING:
    from collections.abc import Sequence

    from django_pooled.pool.options import PoolOptions

__all__ = ["check_row_security"]

# More would fill the screen.
_NAMED = 3


def check_row_security(
    alias: str, options: PoolOptions, tables: Sequence[str]
) -> list[CheckMessage]:
    """Check that what policies go by does not stay in the session.

    Args:
        alias: The database.
        options: Those of its pool.
        tables: Tables whose policies go by a role or call a function, such as current_setting().
    """
    if not tables or options.pool_mode != "session" or options.reset not in ("rollback", None):
        return []
    named = ", ".join(sorted(tables)[:_NAMED])
    if len(tables) > _NAMED:
        named += f" and {len(tables) - _NAMED} more"
    return [
        CheckWarning(
            f"DATABASES[{alias!r}]: policies of row-level security go by roles or settings of the "
            f"session ({named}), and with OPTIONS['pool']['reset'] = {options.reset!r} what one "
            f"request sets is there for the next.",
            hint="Leave 'reset' out: its default, 'auto', clears such connections. Or use SET "
            "LOCAL in a transaction only, and silence this; see docs/transaction_mode.md.",
            id="django_pooled.W019",
        )
    ]
