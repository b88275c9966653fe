"""The arguments of ``retry_requests``, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.db import DEFAULT_DB_ALIAS

from django_pooled.retry.decorator import retry_transaction

if TYPE_CHECKING:
    from django_pooled.retry.policy import TransactionOptions

__all__ = ["DEADLINE", "SiteOptions"]

DEADLINE = 8.0
"""Seconds from the first attempt after which no other is started.

Several times what a restart of PostgreSQL takes. Clients, proxies and gunicorn wait for 30 s or
more, of which the last attempt and the checkout before it need a part; and while the database is in
trouble, restarts for requests that nobody waits for any more would keep threads from new ones.
"""


@dataclass(frozen=True)
class SiteOptions:
    """How the views of a site are run."""

    using: str
    reads: TransactionOptions | None
    """For requests of safe methods; None if they are left alone."""
    writes: TransactionOptions | None
    """For all others; None if they are left alone."""
    renders: TransactionOptions
    """For template responses that Django renders when the view has returned."""

    rehearse: bool
    """Whether views are called once, and what they do outside the database is logged."""

    @classmethod
    def parse(cls, methods: str, rehearse: bool, options: TransactionOptions) -> SiteOptions:
        """Read the arguments of `retry_requests`.

        Raises:
            TypeError, ValueError: One of them cannot work.
        """
        if methods not in ("safe", "unsafe", "all"):
            raise ValueError(
                f"retry_requests(methods={methods!r}); expected 'safe' (GET, HEAD, OPTIONS and "
                f"TRACE, in READ ONLY transactions), 'unsafe' (the others) or 'all'"
            )
        if not isinstance(rehearse, bool):
            raise TypeError(f"retry_requests(rehearse={rehearse!r}); expected True or False")
        if methods != "safe" and options.get("read_only"):
            raise ValueError(
                f"retry_requests(methods={methods!r}, read_only=True): requests that write could "
                "not; leave read_only out, which makes transactions of safe methods READ ONLY"
            )
        common: Any = {"deadline": DEADLINE, **options}
        # What only reads needs no key, and could not store it.
        keyed = {name for name in options if name.startswith("idempotency_")}
        if keyed and methods == "safe":
            raise ValueError(
                f"retry_requests({min(keyed)}=...) is about requests that write; "
                f"expected methods='all' or 'unsafe' with it"
            )
        renders: Any = {"read_only": True, **common}
        for name in keyed:
            del renders[name]
        reads = renders if methods != "unsafe" else None
        writes: Any = {**common, "read_only": None} if methods != "safe" else None
        # It checks them, and names one that it does not know.
        retry_transaction(**common)
        return cls(common.get("using", DEFAULT_DB_ALIAS), reads, writes, renders, rehearse)
