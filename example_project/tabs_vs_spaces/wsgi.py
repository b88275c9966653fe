"""The application that WSGI servers run."""

from __future__ import annotations

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tabs_vs_spaces.settings")

application = get_wsgi_application()
