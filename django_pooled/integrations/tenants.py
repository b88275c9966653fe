"""django-tenants: a stand-in for a wrapper sees the same tenant's tables.

With this engine as its ``ORIGINAL_BACKEND``, it keeps the tenant of a thread on the thread's
wrapper; a copy of the wrapper starts without one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = ["follow", "has_tenants", "is_setting_up"]


def follow(wrapper: BaseDatabaseWrapper, stand_in: BaseDatabaseWrapper) -> None:
    """Give *stand_in* the tenant of *wrapper*, if it has one."""
    tenant = getattr(wrapper, "tenant", None)
    set_tenant = getattr(stand_in, "set_tenant", None)
    if tenant is not None and set_tenant is not None:
        set_tenant(tenant, include_public=getattr(wrapper, "include_public_schema", True))


def has_tenants(wrapper: BaseDatabaseWrapper) -> bool:
    """Tell whether *wrapper* keeps the tenant of its thread."""
    return hasattr(wrapper, "set_tenant")


def is_setting_up(wrapper: BaseDatabaseWrapper) -> bool:
    """Tell whether *wrapper* is sending its tenant's search_path, as it does on each connection.

    django-tenants has no public name for this. Without it, the SET would count as session state
    of the caller, which another connection would lack.
    """
    return bool(getattr(wrapper, "_setting_search_path", False))
