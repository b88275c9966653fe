"""The settings of the workers' site, with what else a test chooses by the environment."""

from __future__ import annotations

import json
import os
from typing import Any

from tests.sites.workers import settings as site
from tests.sites.workers.settings import *  # noqa: F403

_default: dict[str, Any] = site.DATABASES["default"]
_options = {**_default["OPTIONS"], **json.loads(os.environ.get("OPTIONS", "{}"))}
# Django's own pool takes the same options, for a comparison.
_engine = os.environ.get("ENGINE", "django_pooled")
DATABASES = {"default": {**_default, "ENGINE": _engine, "OPTIONS": _options}}
