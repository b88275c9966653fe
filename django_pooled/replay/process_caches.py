"""What Django remembers for the whole process: rows, which a rollback may have taken away."""

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
    """Have Django ask for those rows again, since a transaction was rolled back.

    What it had made or changed, such as a type of content that ``get_for_model()`` creates, would
    be believed by every later transaction of the process.
    """
    for module, name in _MANAGERS:
        # Not imported where nobody uses it.
        model: Any = getattr(sys.modules.get(module), name, None)
        if model is not None:
            model.objects.clear_cache()
