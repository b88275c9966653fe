"""Lets a stand-in see the tables that the wrapper sees, where those depend on a tenant.

django-tenants, with this engine as its ``ORIGINAL_BACKEND``, keeps the tenant of a thread on the
thread's wrapper, and a copy of that starts without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = ["follow", "is_setting_up"]


def follow(wrapper: BaseDatabaseWrapper, stand_in: BaseDatabaseWrapper) -> None:
    """Give *stand_in* the tenant of *wrapper*, if it has one."""
    tenant = getattr(wrapper, "tenant", None)
    set_tenant = getattr(stand_in, "set_tenant", None)
    if tenant is not None and set_tenant is not None:
        set_tenant(tenant, include_public=getattr(wrapper, "include_public_schema", True))


def is_setting_up(wrapper: BaseDatabaseWrapper) -> bool:
    """Tell whether *wrapper* sends the search_path of its tenant, as on each connection it gets.

    django-tenants has no public name for that. Without this one, what it sends would count as
    state of the caller, which another connection lacks.
    """
    return bool(getattr(wrapper, "_setting_search_path", False))
