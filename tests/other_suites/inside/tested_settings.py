"""The settings that $SETTINGS names, with nothing but the ENGINE line changed."""

from __future__ import annotations

import os
from importlib import import_module

_settings = import_module(os.environ["SETTINGS"])
globals().update({name: getattr(_settings, name) for name in dir(_settings) if name.isupper()})
_settings.DATABASES["default"]["ENGINE"] = os.environ["ENGINE"]
