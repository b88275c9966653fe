"""For tests of code under ``retry_transaction``: faults to order, and no waits between attempts."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, get_args

from django.db import DEFAULT_DB_ALIAS, connections

from .retry import fault_injection, loop

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["fail_next_transaction", "no_waiting"]


@contextmanager
def fail_next_transaction(
    sqlstate: str | None = "40001",
    *,
    phase: fault_injection.Moment = "body",
    times: int = 1,
    using: str = DEFAULT_DB_ALIAS,
) -> Iterator[fault_injection.Fault]:
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
    if phase not in get_args(fault_injection.Moment):
        raise ValueError(f"phase is {phase!r}; expected one of {get_args(fault_injection.Moment)}")
    if phase == "answer" and sqlstate is not None:
        raise ValueError("phase='answer' is the loss of an answer: pass sqlstate=None")
    if times < 1:
        raise ValueError(f"times is {times!r}; expected 1 or more")
    blocks = connections[using].atomic_blocks
    in_test_case = any(getattr(block, "_from_testcase", False) for block in blocks)
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
    fault = fault_injection.Fault(using, phase, sqlstate, times)
    fault_injection.ordered.append(fault)
    try:
        yield fault
    finally:
        fault_injection.ordered.remove(fault)


@contextmanager
def no_waiting() -> Iterator[list[float]]:
    """Let ``retry_transaction`` not wait between attempts in this block, in any thread.

    Gives a list of the waits that were left out, in seconds.
    """
    before = loop.pause
    left_out: list[float] = []
    loop.pause = lambda sleep, seconds: left_out.append(seconds)
    try:
        yield left_out
    finally:
        loop.pause = before
