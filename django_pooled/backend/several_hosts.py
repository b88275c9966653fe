"""Lists of hosts in settings: refused where libpq would refuse them with every connection."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured

from django_pooled.diagnostics.redaction import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["hosts_of", "refuse_bad_hosts"]

# https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS
_VALUES = {
    "target_session_attrs": (
        *("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
    ),
    "load_balance_hosts": ("disable", "random"),
}


def hosts_of(entry: Mapping[str, Any]) -> list[str]:
    """Return the hosts that an entry of ``settings.DATABASES`` names, one or several."""
    return _listed(entry, "HOST", "host") or _listed(entry, "", "hostaddr")


def refuse_bad_hosts(alias: str, entry: Mapping[str, Any]) -> None:
    """Refuse lists of hosts, addresses and ports that do not match, and values libpq lacks.

    Args:
        alias: The key of the entry of ``settings.DATABASES``, for the message.
        entry: The entry.

    Raises:
        ImproperlyConfigured: Every connection would be refused; the message says what is expected.
    """
    options = entry.get("OPTIONS") or {}
    for name, values in _VALUES.items():
        value = options.get(name)
        if name in options and value not in values:
            near = difflib.get_close_matches(str(value).lower(), values, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ImproperlyConfigured(
                f"DATABASES[{alias!r}]['OPTIONS'][{name!r}] is {shown(value)}; expected one of "
                f"{', '.join(values)}.{hint}"
            )
    hosts, addresses = _listed(entry, "HOST", "host"), _listed(entry, "", "hostaddr")
    if hosts and addresses and len(hosts) != len(addresses):
        raise ImproperlyConfigured(
            f"DATABASES[{alias!r}]['OPTIONS']['hostaddr'] has {_counted(addresses, 'address')}; "
            f"expected one for each host, of which there {_are(len(hosts))}."
        )
    ports, number = _listed(entry, "PORT", "port"), max(len(hosts), len(addresses))
    if number and len(ports) > 1 and len(ports) != number:
        raise ImproperlyConfigured(
            f"DATABASES[{alias!r}]['PORT'] has {_counted(ports, 'port')}; expected one, or one "
            f"for each host, of which there {_are(number)}."
        )


def _listed(entry: Mapping[str, Any], setting: str, option: str) -> list[str]:
    """Split a list; empty where there is none, and the environment or a service file may have it.

    Django's setting wins over the option.
    """
    value = entry.get(setting) or (entry.get("OPTIONS") or {}).get(option) or ""
    return str(value).split(",") if value else []


def _counted(found: list[str], what: str) -> str:
    plural = "es" if what.endswith("s") else "s"
    return f"{len(found)} {what}{'' if len(found) == 1 else plural}"


def _are(number: int) -> str:
    return "is 1" if number == 1 else f"are {number}"
