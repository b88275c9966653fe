"""The settings that $SETTINGS names, with another ENGINE and, where asked for, its OPTIONS."""

from __future__ import annotations

import json
import os
from importlib import import_module

_settings = import_module(os.environ["SETTINGS"])
globals().update({name: getattr(_settings, name) for name in dir(_settings) if name.isupper()})
_settings.DATABASES["default"]["ENGINE"] = os.environ["ENGINE"]
if _options := json.loads(os.environ["ENGINE_OPTIONS"]):
    _settings.DATABASES["default"]["OPTIONS"] = _options
