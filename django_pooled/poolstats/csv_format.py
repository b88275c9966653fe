"""The pools as comma-separated values: a line for each process and pool."""

from __future__ import annotations

import csv
import io
import re
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from django_pooled.diagnostics.redaction import printable

if TYPE_CHECKING:
    from .overview import Overview
    from .rows import PoolRow

__all__ = ["HEADER", "render"]

_PLAIN = (
    *("alias", "server", "pool_mode", "age", "min_size", "max_size", "size", "idle", "in_use"),
    *("waiting", "longest_waiting", "connecting", "checkouts", "checkins", "discarded"),
    *("reclaimed", "timeouts", "exhausted", "refused", "connects", "connect_failures"),
)
_KINDS = {
    "closed": ("idle", "lifetime", "dead", "error", "reset", "drained"),
    "refused_restarts": ("attempts", "deadline", "budget", "other"),
    "lost_commits": ("committed", "failed", "unknown"),
}
_OUTCOMES = ("committed", "again", "failed")
_TIMES = ("wait", "use", "connect")
_SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}

# At the beginning of a text, or of what is a cell where semicolons separate them.
_FORMULA = re.compile(r"""((?:^|[,;|])[\s'"]*)([=+\-@\uff1d\uff0b\uff0d\uff20])""")

HEADER = (
    *("time", "host", "pid", "command"),
    *_PLAIN,
    *(f"{key}_{kind}" for key, kinds in _KINDS.items() for kind in kinds),
    *("restarts", *(f"restarted_{outcome}" for outcome in _OUTCOMES)),
    *(f"{key}_{part}" for key in _TIMES for part in ("count", "sum", *_SHARES, "max")),
    *("retry_budget_left", "last_error_age", "last_error"),
)
"""Names of the columns. They stay as they are; new ones come at the end."""


def render(overview: Overview, *, header: bool = True) -> str:
    """Return the values of every pool of every process that answered.

    Args:
        header: Whether the names of the columns come first.
    """
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    if header:
        writer.writerow(HEADER)
    moment = datetime.now(timezone.utc).isoformat(timespec="seconds")
    for group in overview.groups:
        for row in group.rows:
            cells = [moment, row.host, row.pid, row.command, *_values(row)]
            writer.writerow([_harmless(cell) for cell in cells])
    return output.getvalue()


def _harmless(cell: Any) -> Any:
    """Return a cell in which no spreadsheet finds a formula: an apostrophe stands before it.

    https://owasp.org/www-community/attacks/CSV_Injection
    """
    return _FORMULA.sub(r"\1'\2", printable(cell)) if isinstance(cell, str) else cell


def _values(row: PoolRow) -> list[Any]:
    values = [row.figures.get(key) for key in _PLAIN]
    for key, kinds in _KINDS.items():
        counts = row.counts(key)
        values += [counts.get(kind, 0) for kind in kinds]
    values.append(row.restarts)
    for outcome in _OUTCOMES:
        values.append(sum(n for (_, ended), n in row.outcomes.items() if ended == outcome))
    for key in _TIMES:
        times = row.times(key)
        shares = [times.quantile(share) for share in _SHARES.values()]
        values += [times.count, times.total, *shares, times.longest if times.count else None]
    values += [row.figures.get(key) for key in ("retry_budget_left", "last_error_age")]
    values.append(row.figures.get("last_error"))
    # Microseconds are enough, and shorter.
    return [round(value, 6) if isinstance(value, float) else value for value in values]
