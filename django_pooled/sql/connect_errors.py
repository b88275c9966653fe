"""Why an attempt to open a connection failed, where psycopg does not say.

Users never get these: their `CheckoutTimeout` or `ConnectFailed` has the words of these.
"""

from __future__ import annotations

import psycopg

from django_pooled.diagnostics.redaction import told

__all__ = ["AttemptFailed", "AttemptHung"]


class AttemptFailed(Exception):
    """What the project brings to a new connection failed; ``__cause__`` is its own error.

    Attributes:
        permanent: Whether waiting will not help.
    """

    def __init__(self, what: str, error: BaseException, *, permanent: bool = False) -> None:
        kind, words = type(error).__name__, told(error)
        super().__init__(f"{what} raised {kind}" + (f": {words}" if words != kind else ""))
        self.__cause__ = error
        self.permanent = permanent


class AttemptHung(psycopg.errors.ConnectionTimeout):
    """An attempt was given up, since one of its steps took too long.

    Attributes:
        wait: Seconds that the next attempt has to wait, at least.
    """

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait
