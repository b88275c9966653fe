"""Idempotency keys: a request that is repeated with its key takes effect once.

The key, a fingerprint of the request and its response are stored in the transaction of the view, so
that there is all of it or nothing. The row tells, too, what became of a COMMIT without an answer.
"""

from __future__ import annotations

import logging
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import uuid4

from psycopg.pq import TransactionStatus

from django_pooled.diagnostics.log_fields import event_fields
from django_pooled.errors import AmbiguousCommit
from django_pooled.pool.backoff import Backoff
from django_pooled.replay.clients import client_has_gone
from django_pooled.replay.idempotency import BadKey, MissingKey, fingerprint_of, request_among
from django_pooled.replay.responses import asks_for_rollback, refuse_coroutine
from django_pooled.replay.stored_responses import REPLAYED, finished, made_again, parts_of, problem
from django_pooled.tokens.idempotency import KEY_SWEEP, KeptResponse, KeyRow, refuse_without_app

from .commit_checks import CommitCheck, status_by_row
from .loop import Loop, wait_between_attempts
from .phase import Phase
from .transaction_status import commit_status

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from django.http import HttpRequest, HttpResponse

    from django_pooled.backend.wrapper import DatabaseWrapper
    from django_pooled.pool.connection import PooledConnection
    from django_pooled.pool.pool import Pool
    from django_pooled.replay.idempotency import IdempotencyOptions

    from .attempt import Attempt
    from .transaction_status import CommitStatus, TransactionIdentity

__all__ = ["UNDER_WAY", "KeyedLoop", "KeyedRequest", "keyed_request"]

logger = logging.getLogger("django_pooled.retry")

R = TypeVar("R")

_LOOK_AGAIN = Backoff(initial=0.025, maximum=0.25)
"""Waits for the end of another transaction with the key, which may be any moment."""

RETRY_AFTER = 2
"""Seconds that a client is told to wait for a request that is under way."""


class _UnderWay:
    """What is returned in place of a response while another request with the key is under way."""


UNDER_WAY: Final = _UnderWay()


class KeyedRequest:
    """One request with an idempotency key.

    Args:
        options: How keys are used.
        request: The request.
        key: Its key.
        name: The view's, for messages.
    """

    def __init__(
        self, options: IdempotencyOptions, request: HttpRequest, key: str, name: str
    ) -> None:
        self.request = request
        self._options = options
        self._key = key
        self._name = name
        self._token = uuid4()
        self._fingerprint = b""
        self.row: KeyRow | None = None
        self._outcome = ""
        self._pool: Pool | None = None

    def read(self) -> None:
        """Read the request; its body may still be on the way."""
        self._fingerprint = fingerprint_of(self.request)

    def answer(
        self, wrapper: DatabaseWrapper, view: Callable[[], Any], *, joins: bool = False
    ) -> Any:
        """Answer the request in the wrapper's transaction: with what is stored, or by the view.

        Args:
            wrapper: In a transaction.
            view: Called without arguments.
            joins: Whether the transaction is that of a call around this one.

        Returns:
            A response, or UNDER_WAY.
        """
        # Its user is asked for here, which may query.
        digest = self._options.digest_of(self.request, self._key)
        self.row = row = KeyRow(digest, self._fingerprint, self._token)
        self._outcome, self._pool = "", wrapper.checked_out_from
        claim = row.claim(wrapper, self._options.expiry)
        if claim.is_new:
            return self._run(wrapper, row, view, joins)
        if claim.is_in_use_here and joins:
            # The call around this one stores what it makes of the response.
            return view()
        if claim.response is None:
            return UNDER_WAY
        if not claim.is_same_request:
            self._outcome = "mismatch"
            return problem(
                422,
                f"{self._options.name} is already used",
                "Another request was sent with this key. Send that one again, or this one with a "
                "key of its own.",
            )
        response = made_again(*claim.response)
        if not claim.is_same_call:
            self._outcome = "replayed"
            response.headers[REPLAYED] = "true"
        return response

    def join(self, wrapper: DatabaseWrapper, view: Callable[[], Any]) -> Any:
        """Answer the request in the transaction of the decorated call around this one."""
        refuse_without_app(wrapper.alias)
        self.read()
        response = self.answer(wrapper, view, joins=True)
        if response is UNDER_WAY:
            response = self.refuse_as_under_way()
        self.note_outcome(wrapper)
        return response

    def refuse_as_under_way(self) -> Any:
        """Make the answer to a request that came while another with its key is under way."""
        self._outcome = "conflict"
        response = problem(
            409,
            f"{self._options.name} is in use",
            "A request with this key is under way. Send it again later for its answer.",
        )
        response.headers["Retry-After"] = str(RETRY_AFTER)
        return response

    def note_outcome(self, wrapper: DatabaseWrapper) -> None:
        """Count and log what became of the request; of the key the log has a digest alone."""
        outcome, row = self._outcome, self.row
        if not outcome or row is None:
            return
        if self._pool is not None:
            self._pool.record.add("idempotency_keys", outcome)
        alias, name, key = wrapper.alias, self._name, row.digest.hex()[:12]
        if outcome == "stored":
            logger.debug(
                "database %r: %s: idempotency key %s: the response is stored",
                alias, name, key,
                extra=event_fields("idempotency_stored", alias=alias, function=name, key=key),
            )  # fmt: skip
        elif outcome == "replayed":
            logger.info(
                "database %r: %s: idempotency key %s: the stored response is sent again",
                alias, name, key,
                extra=event_fields("idempotency_replayed", alias=alias, function=name, key=key),
            )  # fmt: skip
        elif outcome == "mismatch":
            logger.info(
                "database %r: %s: idempotency key %s: refused, it was used for another request",
                alias, name, key,
                extra=event_fields("idempotency_mismatch", alias=alias, function=name, key=key),
            )  # fmt: skip
        else:
            logger.info(
                "database %r: %s: idempotency key %s: refused, one with it is under way",
                alias, name, key,
                extra=event_fields("idempotency_conflict", alias=alias, function=name, key=key),
            )  # fmt: skip

    def _run(
        self, wrapper: DatabaseWrapper, row: KeyRow, view: Callable[[], Any], joins: bool
    ) -> Any:
        response = view()
        refuse_coroutine(response)
        connection = wrapper.connection
        if (
            wrapper.needs_rollback
            # The call around this one may commit all the same.
            or (asks_for_rollback(response) and not joins)
            or connection is None
            or connection.pgconn.transaction_status != TransactionStatus.INTRANS
        ):
            # Nothing will be committed, and a repeat runs again.
            return response
        response = finished(response, self._name)
        row.store(wrapper, KeptResponse(*parts_of(response, self._name)))
        self._outcome = "stored"
        return response


class KeyedLoop(Loop[R]):
    """The attempts of a call whose request has an idempotency key.

    Args:
        keyed: The request.
        args: As for `Loop`.
    """

    def __init__(self, keyed: KeyedRequest, *args: Any) -> None:
        super().__init__(*args)
        self._keyed = keyed
        self._last: Attempt | None = None
        self._call = partial(keyed.answer, self._wrapper, self._call)
        if self._policy.commit_check in ("xid", "token"):
            self._check = _ByKey(keyed)

    def run(self) -> R:
        """Try until an attempt succeeds; before that, wait for another request with the key."""
        wrapper, keyed = self._wrapper, self._keyed
        refuse_without_app(wrapper.alias)
        keyed.read()
        times = 0
        try:
            while (result := super().run()) is UNDER_WAY:
                times += 1
                if not self._pause(_LOOK_AGAIN.wait(times)):
                    result = keyed.refuse_as_under_way()
                    break
        except AmbiguousCommit as error:
            # One of another database, which the view has raised, is as it was.
            is_own = self._last is not None and self._last.phase is Phase.UNKNOWN
            error.repeatable = is_own and not self._check.may_be_partial
            raise
        keyed.note_outcome(wrapper)
        if not wrapper.in_atomic_block:
            KEY_SWEEP.now_and_then(wrapper)
        return result

    def _following(self, attempt: Attempt, error: Exception) -> Attempt | None:
        self._last = attempt
        return super()._following(attempt, error)

    def _pause(self, seconds: float) -> bool:
        """Wait without a connection; tell whether there was time and reason for it."""
        if monotonic() + seconds >= self._deadline or client_has_gone(self._keyed.request):
            return False
        self._give_back()
        wait_between_attempts(self._policy, seconds)
        return True


class _ByKey(CommitCheck):
    """Looks for the row of the idempotency key, which is there if its transaction was committed.

    It needs nothing of the server but a unique index.
    """

    def __init__(self, keyed: KeyedRequest) -> None:
        self._keyed = keyed

    def find(self, connection: PooledConnection, lost: TransactionIdentity | None) -> CommitStatus:
        row = self._keyed.row
        if row is None or not row.is_claimed:
            return commit_status(connection, lost)
        return status_by_row(row.was_committed, connection, lost)


def keyed_request(
    options: IdempotencyOptions, args: Sequence[object], kwargs: Mapping[str, object], name: str
) -> KeyedRequest | HttpResponse | None:
    """Return the request that a view is called with, with its key.

    Returns:
        None if it has no key, and needs none; if the key is refused, the answer.

    Raises:
        TypeError: The call is not one of a view.
    """
    request = request_among(args, kwargs)
    try:
        key = options.key_of(request)
    except BadKey as error:
        what = "missing" if isinstance(error, MissingKey) else "not valid"
        return problem(400, f"{options.name} is {what}", str(error))
    return None if key is None else KeyedRequest(options, request, key, name)
