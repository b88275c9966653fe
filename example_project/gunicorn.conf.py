"""What gunicorn does the same way in every run; ``manage.py serve`` adds the rest."""

from __future__ import annotations

import ctypes
import signal
import sys

wsgi_app = "tabs_vs_spaces.wsgi"
worker_class = "gthread"
keepalive = 5
graceful_timeout = 10
loglevel = "warning"
# Otherwise a socket in the user's home folder, shared by every gunicorn of that user.
control_socket_disable = True


def on_starting(server: object) -> None:
    """End when ``serve`` is killed without a chance to say so (Linux only)."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


def post_worker_init(worker: object) -> None:
    """Let ``serve`` reach each worker, where it takes orders."""
    from faults import hostages

    hostages.listen()
