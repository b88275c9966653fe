"""The site that this process belongs to, which tells its pools from those of others."""

from __future__ import annotations

import os
import sys

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.utils.crypto import salted_hmac

from django_pooled.diagnostics.redaction import masked, one_line
from django_pooled.stats.names import SITE_LENGTH, SiteName

__all__ = ["this_site"]


def this_site() -> SiteName:
    """Return the site of the present settings.

    Its key is the same in all processes with one ``SECRET_KEY``, and tells nobody what that is:
    workers, tasks and commands of a site share it, releases too, and sites must not.
    """
    try:
        secret = settings.SECRET_KEY
    except ImproperlyConfigured:
        # Nothing but the databases tells such sites apart.
        secret = ""
    hashed = salted_hmac("django_pooled.site", "", secret, algorithm="sha256")
    return SiteName(hashed.hexdigest()[:SITE_LENGTH], _settings_path())


def _settings_path() -> str:
    """Return the file of the settings; empty if they are of none."""
    module = sys.modules.get(settings.SETTINGS_MODULE or "")
    path = getattr(module, "__file__", None)
    return one_line(masked(os.path.abspath(path))) if path else ""
