"""A server that cannot write, without the settings saying that it is a replica: W025."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.core.checks import CheckMessage
from django.core.checks import Warning as CheckWarning

if TYPE_CHECKING:
    from collections.abc import Mapping

    from django_pooled.pool.options import PoolOptions

    from .server_facts import ServerFacts

__all__ = ["check_read_only"]


def check_read_only(
    alias: str, entry: Mapping[str, Any], options: PoolOptions, facts: ServerFacts
) -> list[CheckMessage]:
    """Say that all writes will fail."""
    if facts.read_only is None or options.read_only or _names_a_replica(entry):
        return []
    return [
        CheckWarning(
            f"DATABASES[{alias!r}]: {facts.address} is {facts.read_only}: writes fail (25006).",
            hint="Lead HOST to the primary, or list all hosts and set "
            "OPTIONS['target_session_attrs'] to 'read-write'. If it is a replica, set "
            "OPTIONS['pool']['read_only'] to True.",
            id="django_pooled.W025",
        )
    ]


def _names_a_replica(entry: Mapping[str, Any]) -> bool:
    wanted = entry.get("OPTIONS", {}).get("target_session_attrs")
    is_mirror = bool(entry.get("TEST", {}).get("MIRROR"))
    return is_mirror or wanted in ("read-only", "standby", "prefer-standby")
