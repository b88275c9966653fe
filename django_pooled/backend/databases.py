"""Which entries of ``settings.DATABASES`` use this backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured
from django.db.utils import load_backend

from django_pooled.diagnostics.required_names import UnsupportedRelease

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["is_ours", "is_pooled", "loads_as_ours"]


def is_ours(settings_dict: Mapping[str, Any]) -> bool:
    """Tell whether an entry of ``settings.DATABASES`` uses this backend or one built on it."""
    # The system checks import this module where psycopg is missing, to say so.
    from .wrapper import DatabaseWrapper

    # psqlextra's makes a wrapper of ours while it is imported, and has none of its own until then.
    wrapper = getattr(load_backend(settings_dict["ENGINE"]), "DatabaseWrapper", None)
    return isinstance(wrapper, type) and issubclass(wrapper, DatabaseWrapper)


def is_pooled(settings_dict: Mapping[str, Any]) -> bool:
    """Tell whether an entry of ``settings.DATABASES`` has a pool of this backend.

    With ``OPTIONS["pool"] = False`` it has none.
    """
    return is_ours(settings_dict) and settings_dict.get("OPTIONS", {}).get("pool") is not False


def loads_as_ours(settings_dict: Mapping[str, Any]) -> bool:
    """As `is_ours`; another backend whose package is missing is not.

    Django says so when that one is used.

    Raises:
        UnsupportedRelease: This backend cannot be loaded.
    """
    try:
        return bool(settings_dict.get("ENGINE")) and is_ours(settings_dict)
    except UnsupportedRelease:
        raise
    except (ImportError, ImproperlyConfigured):
        return False
