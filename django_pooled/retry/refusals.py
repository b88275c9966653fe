"""The errors for results that would read as success, though nothing was committed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.db.transaction import TransactionManagementError

if TYPE_CHECKING:
    from django_pooled.backend.wrapper import DatabaseWrapper

__all__ = ["broken_transaction", "lost_transaction", "memoized_result"]


def memoized_result(name: str, wrapper: DatabaseWrapper) -> TransactionManagementError:
    """Make the error for a function that returns what it has cached in a failed attempt."""
    return TransactionManagementError(
        f"{name} had written to {wrapper.alias!r} before it was rolled back and restarted, and "
        f"then returned the same result without a statement: it remembers what was not committed. "
        f"Keep such a memory above retry_transaction, or fill it in transaction.on_commit()."
    )


def lost_transaction(name: str, wrapper: DatabaseWrapper) -> TransactionManagementError:
    """Make the error for a function whose transaction has neither ended in COMMIT nor failed."""
    return TransactionManagementError(
        f"{name} returned, but its transaction on {wrapper.alias!r} was not committed: its atomic "
        f"block was ended by other code."
    )


def broken_transaction(wrapper: DatabaseWrapper, *, interrupted: bool) -> BaseException:
    """Make the error for a function that has returned from a transaction which it has broken.

    Args:
        wrapper: With the state in which the function has left it.
        interrupted: Whether an exception interrupted the end of a nested block.
    """
    alias = wrapper.alias
    if wrapper.closed_in_transaction:
        return TransactionManagementError(
            f"The connection to {alias!r} was closed inside its transaction, which was therefore "
            f"not committed."
        )
    if interrupted:
        return TransactionManagementError(
            f"An exception that interrupted the beginning or end of a nested atomic block on "
            f"{alias!r} was swallowed; the transaction was not committed."
        )
    if wrapper.needs_rollback:
        if wrapper.rollback_exc is not None:
            return wrapper.rollback_exc
        return TransactionManagementError(
            f"An exception that left a nested atomic block on {alias!r} was swallowed, and the "
            f"block had no savepoint that could be rolled back to; the transaction was not "
            f"committed."
        )
    return TransactionManagementError(
        f"The transaction on {alias!r} was broken by an error that was raised below Django and "
        f"swallowed; it cannot be committed."
    )
