"""Django's caches of rows for the whole process, which a rollback makes stale."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["forget_rows"]

_MANAGERS = (
    ("django.contrib.contenttypes.models", "ContentType"),
    ("django.contrib.sites.models", "Site"),
)
"""Models whose managers keep rows, and have clear_cache()."""


def forget_rows() -> None:
    """Clear the caches, since a transaction was rolled back.

    Every later transaction of the process would use rows that it had made or changed, such as a
    content type that ``get_for_model()`` creates.
    """
    for module, name in _MANAGERS:
        # Not imported if the project does not use it.
        model: Any = getattr(sys.modules.get(module), name, None)
        if model is not None:
            model.objects.clear_cache()
