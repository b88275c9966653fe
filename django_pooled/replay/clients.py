"""Tells whether the client of a request still waits for the response."""

from __future__ import annotations

import select
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from django.http import HttpRequest

__all__ = ["client_has_gone"]


def client_has_gone(request: HttpRequest) -> bool | None:
    """Tell whether the client has closed its connection; None where that cannot be known.

    It is known under gunicorn and uWSGI on Linux, and under waitress with
    ``channel_request_lookahead``. The client is the other end of the server's connection, such as
    a proxy. One that has only shut down its side counts as gone, as it does for nginx. Under ASGI
    the server's task knows, but not the thread of the view.
    """
    told = request.META.get("waitress.client_disconnected")
    if told is not None:
        return True if told() else None
    socket = request.META.get("gunicorn.socket")
    if socket is not None:
        return _hung_up(socket.fileno())
    # It exists only inside uWSGI's workers.
    uwsgi: Any = sys.modules.get("uwsgi")
    if hasattr(uwsgi, "connection_fd"):
        return _hung_up(uwsgi.connection_fd())
    return None


def _hung_up(descriptor: int) -> bool | None:
    if not hasattr(select, "POLLRDHUP"):
        return None
    if descriptor < 0:
        return True
    # gevent's own poll knows no such event; with no time to wait, none is needed.
    monkey: Any = sys.modules.get("gevent.monkey")
    poll = select.poll if monkey is None else monkey.get_original("select", "poll")
    looker = poll()
    looker.register(descriptor, select.POLLRDHUP)
    return bool(looker.poll(0))
