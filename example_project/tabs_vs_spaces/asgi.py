"""The application that ASGI servers run."""

from __future__ import annotations

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tabs_vs_spaces.settings")

application = get_asgi_application()
