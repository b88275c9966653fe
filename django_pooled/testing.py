"""For tests: faults to order, sessions and deadlines to end, repeated requests, no waits."""

from __future__ import annotations

import re
import uuid
from contextlib import contextmanager
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from django.db import DEFAULT_DB_ALIAS, connections

from .backend.credentials import connect_aside
from .backend.django_private import is_block_of_test_case
from .pool.deadline import Deadline
from .pool.socket_check import look_at
from .replay.stored_responses import REPLAYED
from .retry.fault_injection import Fault, Moment, ordered
from .retry.loop import Seams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper


__all__ = [
    "end_deadlines_at_once",
    "fail_next_transaction",
    "no_waiting",
    "repeated",
    "terminate_backend",
]

R = TypeVar("R")


@contextmanager
def fail_next_transaction(
    sqlstate: str | None = "40001",
    *,
    phase: Moment = "body",
    times: int = 1,
    using: str = DEFAULT_DB_ALIAS,
) -> Iterator[Fault]:
    """Make the next attempts of ``retry_transaction`` in this block fail, for real.

    The server itself raises the error, so that the connection is in the state that goes with
    it; without an SQLSTATE the session is ended. ``with fail_next_transaction() as fault: …``
    gives an object whose ``struck`` tells how often it happened.

    Args:
        sqlstate: Of the error; None for a connection that is lost.
        phase: "begin" before the function runs, "body" after it has returned, "commit" in
            place of COMMIT, "answer" after COMMIT was done, whose answer is lost (with
            sqlstate None). The last two need a real COMMIT: a ``TransactionTestCase``, or
            ``django_db(transaction=True)``.
        times: How many attempts fail.
        using: Key of the database in ``settings.DATABASES``.

    Raises:
        ValueError: An argument that cannot work.
        RuntimeError: *phase* needs a COMMIT, and a ``TestCase`` never makes one.
    """
    if sqlstate is not None and not re.fullmatch("[0-9A-Z]{5}", sqlstate):
        raise ValueError(f"sqlstate is {sqlstate!r}; expected five digits or capitals, or None")
    if phase not in get_args(Moment):
        raise ValueError(f"phase is {phase!r}; expected one of {get_args(Moment)}")
    if phase == "answer" and sqlstate is not None:
        raise ValueError("phase='answer' is the loss of an answer: pass sqlstate=None")
    if times < 1:
        raise ValueError(f"times is {times!r}; expected 1 or more")
    in_test_case = _is_in_test_case(connections[using])
    if phase in ("commit", "answer") and in_test_case:
        raise RuntimeError(
            f"phase={phase!r} needs a real COMMIT, which a TestCase never makes: use "
            f"TransactionTestCase or pytest.mark.django_db(transaction=True)."
        )
    if sqlstate is None and in_test_case:
        raise RuntimeError(
            "sqlstate=None loses the connection, and with it the transaction of a TestCase: use "
            "TransactionTestCase or pytest.mark.django_db(transaction=True)."
        )
    with ordered(Fault(using, phase, sqlstate, times)) as fault:
        yield fault


def _is_in_test_case(wrapper: BaseDatabaseWrapper) -> bool:
    return any(map(is_block_of_test_case, wrapper.atomic_blocks))


@contextmanager
def end_deadlines_at_once() -> Iterator[None]:
    """Have each `django_pooled.deadline` that begins in this block end at once, in any thread.

    So do those of ``DeadlineMiddleware``. The first statement or checkout after that is refused for
    real, and what follows is as after any deadline. In a ``TestCase`` too.
    """
    before = Deadline.are_over
    Deadline.are_over = True
    try:
        yield
    finally:
        Deadline.are_over = before


@contextmanager
def no_waiting() -> Iterator[list[float]]:
    """Let ``retry_transaction`` not wait between attempts in this block, in any thread.

    Gives a list of the waits that were left out, in seconds.
    """
    before = Seams.left_out
    left_out: list[float] = []
    Seams.left_out = left_out
    try:
        yield left_out
    finally:
        Seams.left_out = before


def repeated(send: Callable[..., R], *args: Any, key: str | None = None, **kwargs: Any) -> R:
    """Send a request twice with one idempotency key, as a client does that got no answer.

    Args:
        send: A method of Django's test client, such as ``client.post``.
        args: Its arguments.
        key: The key; None for a new one.
        kwargs: Its keyword arguments. ``headers`` may have the key under another name than
            ``Idempotency-Key``.

    Returns:
        The first response.

    Raises:
        AssertionError: The second response is not the first one, stored and sent again.
    """
    headers = {"Idempotency-Key": f'"{key or uuid.uuid4()}"', **(kwargs.pop("headers", None) or {})}
    answers: list[Any] = [send(*args, headers=headers, **kwargs) for _ in range(2)]
    first, second = answers
    if second.headers.get(REPLAYED) != "true" or REPLAYED in first.headers:
        raise AssertionError(
            f"the repeat was not answered with the stored response: the first answer was "
            f"{first.status_code}, the second {second.status_code}, with {REPLAYED} "
            f"{second.headers.get(REPLAYED)!r}; is the view decorated with idempotency_key, and "
            f"was its transaction committed?"
        )
    contents = [(answer.status_code, answer.content) for answer in answers]
    if contents[0] != contents[1]:
        raise AssertionError(f"the repeat was answered {contents[1]}, and the first {contents[0]}")
    response: R = first
    return response


def terminate_backend(*, using: str = DEFAULT_DB_ALIAS, timeout: float = 10.0) -> None:
    """End the session of this thread's connection, for real, as a restart of the server does.

    By ``pg_terminate_backend()`` on a connection of its own. Returns when the loss can be seen on
    the socket, so what follows does not depend on time.

    Args:
        using: Key of the database in ``settings.DATABASES``.
        timeout: Seconds that the session has to end.

    Raises:
        RuntimeError: There is no connection, or it did not end; or its transaction is that of a
            ``TestCase``.
        psycopg.Error: The server refuses that function to the role of the connection.
    """
    wrapper: Any = connections[using]
    connection = wrapper.connection
    if connection is None or connection.closed:
        raise RuntimeError(f"database {using!r} has no connection in this thread: make a query")
    if _is_in_test_case(wrapper):
        raise RuntimeError(
            "Ending the session would end the transaction of a TestCase: use TransactionTestCase "
            "or pytest.mark.django_db(transaction=True)."
        )
    parameters = wrapper.get_connection_params()
    with connect_aside(wrapper.settings_dict, parameters, autocommit=True) as other:
        other.execute("SELECT pg_catalog.pg_terminate_backend(%s)", [connection.info.backend_pid])
    is_readable = look_at(connection.pgconn.socket)
    deadline = monotonic() + timeout
    while not is_readable():
        if monotonic() >= deadline:
            raise RuntimeError(
                f"database {using!r}: the session did not end within {timeout:g} s; a pooler "
                f"between here and the server has process ids of its own"
            )
        sleep(0.001)
