"""The error of all that can go wrong with a server of one's own."""

from __future__ import annotations

__all__ = ["ServerError"]


class ServerError(RuntimeError):
    """The server could not be made, started or stopped; the message has its own log lines."""
