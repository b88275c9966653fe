"""Spans for OpenTelemetry: the wait of a checkout, and each attempt of a transaction."""

# https://opentelemetry.io/docs/specs/semconv/database/database-spans/

from __future__ import annotations

import threading
from functools import partial
from time import time_ns
from typing import TYPE_CHECKING, NamedTuple

from opentelemetry.context import attach, detach
from opentelemetry.trace import Status, StatusCode, get_tracer, set_span_in_context

import django_pooled
from django_pooled.activity import current, name_of
from django_pooled.signals import (
    attempt_ended,
    attempt_started,
    checkout_failed,
    connection_checked_out,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Token

    from django.dispatch import Signal
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer, TracerProvider

    from django_pooled.errors import PoolError

__all__ = ["instrument", "uninstrument"]

# Names of the conventions.
SYSTEM = {"db.system.name": "postgresql"}
POOL_NAME = "db.client.connection.pool.name"
SQLSTATE = "db.response.status_code"
ERROR = "error.type"
FUNCTION = "code.function.name"

# They have none for these.
ALIAS = "django_pooled.database"
ACTIVITY = "django_pooled.activity"
ATTEMPT = "django_pooled.attempt.number"
OUTCOME = "django_pooled.attempt.outcome"

_current: _Instrumentation | None = None


def instrument(
    tracer_provider: TracerProvider | None = None, *, shortest_wait: float = 0.001
) -> None:
    """Make a span for each attempt of a transaction, and for each wait for a connection.

    Spans of statements that other instrumentations make in an attempt are its children. May be
    called in the settings, before a fork, and more than once: while it listens, another call
    changes nothing.

    Args:
        tracer_provider: None for OpenTelemetry's global one.
        shortest_wait: Seconds. A checkout that took less has no span: as a rule one takes
            microseconds, and there is one for each request, or for each transaction.
    """
    global _current
    if _current is None:
        tracer = get_tracer("django_pooled", django_pooled.__version__, tracer_provider)
        _current = _Instrumentation(tracer, shortest_wait)


def uninstrument() -> None:
    """Make no more spans; `instrument` may be called again."""
    global _current
    if _current is not None:
        _current.end()
        _current = None


class _Open(NamedTuple):
    """The span of an attempt under way."""

    span: Span
    token: Token[Context]
    """Of the context that it is the present span of."""


class _Instrumentation:
    """The receivers of `instrument`, until `uninstrument`."""

    def __init__(self, tracer: Tracer, shortest_wait: float) -> None:
        self._tracer = tracer
        self._shortest_wait = shortest_wait
        self._local = threading.local()
        """Attempts under way, the innermost last: one on another database may run within one."""
        self._receivers: list[tuple[Signal, Callable[..., None]]] = [
            (connection_checked_out, self._checked_out),
            (checkout_failed, self._checkout_failed),
            (attempt_started, self._attempt_started),
            (attempt_ended, self._attempt_ended),
        ]
        for signal, receiver in self._receivers:
            signal.connect(receiver, weak=False)

    def end(self) -> None:
        for signal, receiver in self._receivers:
            signal.disconnect(receiver)

    def _checked_out(self, using: str, pool_name: str, waited: float, **_: object) -> None:
        if waited >= self._shortest_wait:
            self._checkout(using, pool_name, waited)

    def _checkout_failed(
        self, using: str, pool_name: str, waited: float, error: PoolError, **_: object
    ) -> None:
        self._checkout(using, pool_name, waited, error)

    def _checkout(
        self, using: str, pool_name: str, waited: float, error: PoolError | None = None
    ) -> None:
        """Make a span after the event, so that it costs nothing while the thread waits."""
        now = time_ns()
        attributes = {**SYSTEM, POOL_NAME: pool_name, ALIAS: using}
        if activity := current.get():
            attributes[ACTIVITY] = activity
        span = self._tracer.start_span(
            f"checkout {pool_name}", attributes=attributes, start_time=now - int(waited * 1e9)
        )
        if error is not None:
            _note_error(span, error)
        span.end(now)

    def _attempt_started(
        self, sender: Callable[..., object], using: str, attempt: int, **_: object
    ) -> None:
        while isinstance(sender, partial):
            sender = sender.func
        name = name_of(sender)
        span = self._tracer.start_span(
            f"attempt {name}",
            attributes={**SYSTEM, ALIAS: using, FUNCTION: name, ATTEMPT: attempt},
        )
        self._open.append(_Open(span, attach(set_span_in_context(span))))

    def _attempt_ended(
        self,
        outcome: str,
        pool_name: str | None,
        sqlstate: str | None,
        error: BaseException | None,
        **_: object,
    ) -> None:
        if not self._open:
            return  # It began before `instrument`.
        span, token = self._open.pop()
        detach(token)
        span.set_attribute(OUTCOME, outcome)
        if pool_name is not None:
            span.set_attribute(POOL_NAME, pool_name)
        if sqlstate is not None:
            span.set_attribute(SQLSTATE, sqlstate)
        if error is not None:
            _note_error(span, error)
        span.end()

    @property
    def _open(self) -> list[_Open]:
        found: list[_Open] = self._local.__dict__.setdefault("open", [])
        return found


def _note_error(span: Span, error: BaseException) -> None:
    # Without its text, which may quote rows.
    span.set_attribute(ERROR, type(error).__qualname__)
    span.set_status(Status(StatusCode.ERROR))
