"""A call that is restarted where that is sound, and else made as it would be without attempts."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from django.db import connections
from django.db.transaction import TransactionManagementError
from django.http import FileResponse

from django_pooled.backend.django_private import is_refused_as_durable
from django_pooled.backend.wrapper import DatabaseWrapper
from django_pooled.diagnostics.redaction import told
from django_pooled.replay import CannotReplay, Inputs, Surroundings
from django_pooled.replay.responses import renders_apart
from django_pooled.retry.attempt import Attempt
from django_pooled.retry.decorator import retry_transaction
from django_pooled.sql.sqlstates import ACTIVE_SQL_TRANSACTION, READ_ONLY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from django_pooled.retry.policy import TransactionOptions

    from .notice import Notice

__all__ = ["RestartedCall"]

_IN_A_ROW = 2
"""Calls in a row that did not fit a transaction, after which no other is tried in one."""

_NOTHING = Surroundings(None)


class _LeftAlone(Exception):
    """The call does not fit the transaction; the message says why.

    Args:
        reason: Why.
        written: Other databases that the call may have written to, where that stays done.
    """

    def __init__(self, reason: str, written: Iterable[str]) -> None:
        super().__init__(reason)
        self.written = sorted(written)


class RestartedCall:
    """Calls a view, or the rendering of its response, by ``retry_transaction``.

    Some calls do not fit the transaction that is opened around them: a GET that writes does not fit
    one that is READ ONLY, a session advisory lock is given up before the transaction ends, and a
    stream goes on reading a cursor after it. What such an attempt did is rolled back and the call
    made again, as it would be without the line in the URLconf. A warning tells of it, once. If it
    happens twice in a row, no transaction is tried any more in this process.

    Args:
        function: What is called.
        name: The view's module and name.
        options: Of its transactions.
        notice: Tells of a call that does not fit.
        writes: How a call that should only read and writes is made: with restarts, or without.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        name: tuple[str, str],
        options: TransactionOptions,
        notice: Notice,
        *,
        writes: bool = False,
    ) -> None:
        self._notice = notice
        self._instead = "in a transaction that may write" if writes else "without restarts"
        self._remedy = (
            "Give retry_requests read_only=False, or mark it @no_retry"
            if writes
            else "Mark it @no_retry, or give retry_requests methods='all' or read_only=False"
        )
        self._using = options.get("using", "default")
        self._reads_only = options.get("read_only") is True
        self._misfits = 0
        """How many calls in a row did not fit."""

        def attempt(*args: Any, **kwargs: Any) -> Any:
            try:
                result = function(*args, **kwargs)
            except Exception as error:
                if misfit := self._misfit(None, error):
                    raise _LeftAlone(*misfit) from error
                raise
            if misfit := self._misfit(result):
                raise _LeftAlone(*misfit)
            return result

        # By which logs, signals and the retry budget know it.
        attempt.__module__, attempt.__qualname__ = name
        renders_apart(attempt)
        self._retried = retry_transaction(**options)(attempt)

    def __call__(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], otherwise: Callable[[], Any]
    ) -> Any:
        """Make the call.

        Args:
            args: Positional arguments.
            kwargs: Keyword arguments.
            otherwise: Makes it as it would be without attempts.
        """
        if self._misfits >= _IN_A_ROW:
            return otherwise()
        inputs = Inputs(_NOTHING, args, kwargs)
        try:
            result = inputs.run(partial(self._retried, *args, **kwargs))
        except _LeftAlone as found:
            self._misfits += 1
            if found.written:
                # Once: the next call is made without a transaction at once.
                self._misfits = _IN_A_ROW
                raise TransactionManagementError(
                    f"The view was rolled back and cannot be run again: {found}. It may have "
                    f"written to {', '.join(map(repr, found.written))}, which would be done twice."
                ) from found.__cause__
            self._notice.tell(str(found), self._instead)
            try:
                inputs.restore()
            except CannotReplay:
                if found.__cause__ is not None:
                    raise found.__cause__ from None
                raise
        else:
            self._misfits = 0
            return result
        return otherwise()

    def _misfit(
        self, result: object, error: Exception | None = None
    ) -> tuple[str, Iterable[str]] | None:
        """Return why the call that has just ended does not fit its transaction; None if it does.

        Besides, other databases that it may have written to.
        """
        wrapper = connections[self._using]
        if not isinstance(wrapper, DatabaseWrapper) or not isinstance(wrapper.attempt, Attempt):
            return None
        reason = self._reason(wrapper, wrapper.attempt, result, error)
        return None if reason is None else (reason, wrapper.attempt.written_elsewhere)

    def _reason(
        self, wrapper: DatabaseWrapper, attempt: Attempt, result: object, error: Exception | None
    ) -> str | None:
        if is_refused_as_durable(error):
            return "it has a durable atomic block, which must be the outermost. Mark it @no_retry"
        for failure in attempt.failures:
            if failure.sqlstate == ACTIVE_SQL_TRANSACTION:
                return (
                    f"it runs a statement that cannot be part of a transaction "
                    f"({told(failure.error)}). Mark it @no_retry"
                )
        if self._reads_only:
            # Also one that was swallowed: without the line it would have been done.
            for failure in attempt.failures:
                if failure.sqlstate == READ_ONLY:
                    return (
                        f"it writes in a request that should only read ({told(failure.error)}). "
                        f"{self._remedy}"
                    )
        elif attempt.watch is not None and attempt.watch.took_session_lock:
            return (
                "it uses a session advisory lock, which would be released before the transaction "
                "ends. Use pg_advisory_xact_lock(), or mark it @no_retry"
            )
        if (
            getattr(result, "streaming", False) is True
            and wrapper.has_server_side_cursors()
            and not (isinstance(result, FileResponse) and result.file_to_stream is not None)
        ):
            return (
                "its streaming response goes on reading a server-side cursor, which ends with the "
                "transaction. Open it in the stream, or mark the view @no_retry"
            )
        return None
