"""An application that has used its database before a server forks its workers.

With ``gunicorn --preload`` the master imports this: it is left with one connection in use and
an idle one.
"""

from __future__ import annotations

import os
import threading

from django.core.wsgi import get_wsgi_application
from django.db import connection, connections

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.sites.workers.settings")
application = get_wsgi_application()


def _use_and_give_back() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    connections.close_all()


with connection.cursor() as _cursor:
    _cursor.execute("SELECT 1")
    _other = threading.Thread(target=_use_and_give_back)
    _other.start()
    _other.join()
