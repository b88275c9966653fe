"""Takes every connection of a worker's pool and keeps it, as a thread with a slow query would."""

from __future__ import annotations

import logging
import os
import threading
import time

from django.conf import settings
from django.db import OperationalError, connection

from . import channel

logger = logging.getLogger(__name__)


def listen() -> None:
    """Wait for orders in the background; gunicorn calls it in each new worker."""
    if channel.VARIABLE in os.environ:
        threading.Thread(target=_listen, name="waits for orders", daemon=True).start()


def _listen() -> None:
    taking = _Taking()
    try:
        with channel.dial() as line:
            line.send({"order": "listen", "pid": os.getpid()})
            for message in line:
                taking.release()
                taking = _Taking()
                taking.start(message["seconds"], line)
    except channel.Unreachable as error:
        logger.warning("No orders will arrive here: %s", error)
    finally:
        # Whoever could have told us to let go is gone.
        taking.release()


class _Taking:
    """One hostage-taking, of all that the pool has."""

    def __init__(self) -> None:
        self._released = threading.Event()
        self._counting = threading.Lock()
        self._held = 0

    def start(self, seconds: float, line: channel.Line) -> None:
        until = time.monotonic() + seconds
        pool = settings.DATABASES["default"]["OPTIONS"]["pool"]
        for _ in range(pool["max_size"] if seconds else 0):
            threading.Thread(target=self._hold, args=[until, line], daemon=True).start()

    def release(self) -> None:
        self._released.set()

    def _hold(self, until: float, line: channel.Line) -> None:
        try:
            connection.ensure_connection()
            self._count(+1, line)
            self._released.wait(until - time.monotonic())
            self._count(-1, line)
        except OperationalError as error:
            # The pool is as hard to get by for us as for a visitor.
            logger.info("One connection could not be taken: %s", error)
        finally:
            connection.close()

    def _count(self, change: int, line: channel.Line) -> None:
        with self._counting:
            self._held += change
            try:
                line.send({"held": self._held})
            except OSError as error:
                logger.info("serve is gone: %s", error)
                self.release()
