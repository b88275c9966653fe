"""What others do about a lost COMMIT, by which the proof shows that it would find them out."""

from __future__ import annotations

import time
from functools import wraps
from typing import TYPE_CHECKING, Any

from django.db import InterfaceError, OperationalError, connection
from django.db.transaction import atomic

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PEERS"]

ATTEMPTS = 30


def run_again(function: Callable[..., None]) -> Callable[..., None]:
    """Run it again after any error of the connection, as a plain retry does."""

    @wraps(function)
    def decorated(*args: Any) -> None:
        for _ in range(ATTEMPTS - 1):
            try:
                with atomic():
                    return function(*args)
            except (OperationalError, InterfaceError):
                lose_connection()
        with atomic():
            return function(*args)

    return decorated


def believe_the_id(function: Callable[..., None]) -> Callable[..., None]:
    """Ask for the status of the transaction's id, whatever has happened to the server since."""

    @wraps(function)
    def decorated(*args: Any) -> None:
        for _ in range(ATTEMPTS):
            xid, hooks = None, []
            try:
                with atomic():
                    function(*args)
                    xid = ask("SELECT pg_current_xact_id_if_assigned()::text")
                    hooks = [hook[1] for hook in connection.run_on_commit]
                return
            except (OperationalError, InterfaceError):
                lose_connection()
            if xid is not None and status_of(xid) == "committed":
                for hook in hooks:
                    hook()
                return
        raise OperationalError("no attempt went through")

    return decorated


def status_of(xid: str) -> Any:
    for _ in range(ATTEMPTS):
        try:
            status = ask("SELECT pg_xact_status(%s::xid8)", xid)
        except (OperationalError, InterfaceError):
            lose_connection()
            continue
        if status != "in progress":
            return status
        time.sleep(0.05)
    return None


def ask(query: str, *parameters: str) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(query, parameters)
        return cursor.fetchone()[0]


def lose_connection() -> None:
    connection.close()
    time.sleep(0.02)


PEERS = {"(run again)": run_again, "(id alone)": believe_the_id}
"""By the name that stands in for a ``commit_check``."""
