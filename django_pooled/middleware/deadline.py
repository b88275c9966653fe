"""A deadline for each request, from a setting and from the header of a proxy."""

from __future__ import annotations

import asyncio
import logging
import re
from dataclasses import dataclass, fields
from difflib import get_close_matches
from math import inf
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.utils.deprecation import MiddlewareMixin

from django_pooled.diagnostics.log_fields import event_fields
from django_pooled.diagnostics.redaction import one_line
from django_pooled.errors import DeadlineExceeded
from django_pooled.pool.deadline import Deadline, current
from django_pooled.pool.seconds import is_time_limit
from django_pooled.replay.clients import client_has_gone
from django_pooled.sql.sqlstates import is_ended_by_deadline, is_server_away

from .unavailable import unavailable_response

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from django.http import HttpRequest, HttpResponse
    from django.http.response import HttpResponseBase

__all__ = ["SETTING", "DeadlineMiddleware", "DeadlineSettings"]

logger = logging.getLogger("django_pooled.pool")

SETTING = "POOLED_DEADLINE"

_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
# https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
_GRPC = re.compile(r"([0-9]{1,8})([HMSmun])")
_GRPC_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


@dataclass(frozen=True)
class DeadlineSettings:
    """The setting ``POOLED_DEADLINE``, checked.

    Raises:
        ImproperlyConfigured: A value that cannot work.
    """

    seconds: float | None = None
    """Longest time of a request; None for no limit but the header's."""
    header: str | None = None
    """A header with the time that is left, which only a proxy of yours can set; None for none."""
    minimum: float = 0.05
    """Seconds; a request with less of them is answered 503 before its view is called."""
    cancel_on_disconnect: bool = False
    """Whether the deadline ends as well when the client has gone."""

    def __post_init__(self) -> None:
        for name in ("seconds", "minimum"):
            value = getattr(self, name)
            if value is None and name == "seconds":
                continue
            is_allowed_zero = name == "minimum" and value == 0 and not isinstance(value, bool)
            if not is_time_limit(value) and not is_allowed_zero:
                raise ImproperlyConfigured(
                    f"{SETTING}[{name!r}] is {value!r}; expected seconds above 0"
                )
        if self.header is not None and not (
            isinstance(self.header, str) and re.fullmatch("[A-Za-z0-9-]+", self.header)
        ):
            raise ImproperlyConfigured(
                f"{SETTING}['header'] is {self.header!r}; expected a header's name, such as "
                f"'X-Request-Timeout'"
            )
        if not isinstance(self.cancel_on_disconnect, bool):
            raise ImproperlyConfigured(
                f"{SETTING}['cancel_on_disconnect'] is {self.cancel_on_disconnect!r}; expected "
                f"True or False"
            )
        if self.seconds is not None and self.seconds <= self.minimum:
            raise ImproperlyConfigured(
                f"{SETTING}['seconds'] is {self.seconds!r}; expected more than 'minimum', "
                f"{self.minimum!r}, below which requests are refused"
            )

    @classmethod
    def read(cls) -> DeadlineSettings:
        """Read the setting.

        Raises:
            ImproperlyConfigured: It cannot work.
        """
        found: Any = getattr(settings, SETTING, None)
        if isinstance(found, int | float) and not isinstance(found, bool):
            found = {"seconds": found}
        if not isinstance(found, dict):
            raise ImproperlyConfigured(
                f"{SETTING} is {found!r}; expected seconds, or a dict such as "
                f'{{"seconds": 10.0, "header": "X-Request-Timeout"}}'
            )
        known = [field.name for field in fields(cls)]
        for name in found:
            if name not in known:
                close = get_close_matches(str(name), known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
                raise ImproperlyConfigured(f"{SETTING} has an unknown key {name!r}; {hint}")
        has_limit = found.get("seconds") is not None or found.get("header") is not None
        if not (has_limit or found.get("cancel_on_disconnect")):
            raise ImproperlyConfigured(f"{SETTING} has neither 'seconds' nor 'header'")
        return cls(**found)


class DeadlineMiddleware(MiddlewareMixin):
    """Give each request a deadline, as by `django_pooled.deadline`; see docs/deadlines.md.

    Its length is the setting ``POOLED_DEADLINE``: seconds, or a dict with ``seconds``, ``header``,
    ``minimum`` and ``cancel_on_disconnect``. The header can only shorten what the setting says. It
    has seconds, or milliseconds if its name ends in ``-ms``, or gRPC's notation if it is
    ``grpc-timeout``; a value that cannot be read is ignored and logged.

    Works under WSGI and ASGI; place it first in MIDDLEWARE, so that what others do in the database
    is within the deadline too.

    Raises:
        ImproperlyConfigured: At start-up, for a setting that cannot work.
    """

    get_response: Any
    """The next middleware, or the view."""

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        super().__init__(get_response)
        self.settings: DeadlineSettings = DeadlineSettings.read()

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if self.async_mode:
            return self.__acall__(request)
        seconds = self._seconds_of(request)
        if seconds < self.settings.minimum:
            return self._too_little(request, seconds)
        is_gone = _is_gone_by(request) if self.settings.cancel_on_disconnect else None
        token = current.set(Deadline.begin(seconds, is_gone))
        try:
            response: HttpResponseBase = self.get_response(request)
            return response
        finally:
            # The thread goes on to other requests.
            current.reset(token)

    async def __acall__(self, request: HttpRequest) -> HttpResponseBase:
        seconds = self._seconds_of(request)
        if seconds < self.settings.minimum:
            return self._too_little(request, seconds)
        made = Deadline.begin(seconds)
        token = current.set(made)
        try:
            if not self.settings.cancel_on_disconnect:
                response: HttpResponseBase = await self.get_response(request)
                return response
            return await self._unless_gone(request, made)
        finally:
            current.reset(token)

    async def _unless_gone(self, request: HttpRequest, made: Deadline) -> HttpResponseBase:
        """Have the deadline end when Django cancels the request, since its client has gone.

        In a task of its own: one that waits for a thread learns that it was cancelled only when
        the thread is done.
        """
        task: asyncio.Future[HttpResponseBase] = asyncio.ensure_future(self.get_response(request))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            made.end("the client has gone")
            task.cancel()
            # What it raises by now concerns nobody.
            await asyncio.wait([task])
            raise

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """Django's hook for what views and lazily rendered templates raise.

        Args:
            request: The request that failed.
            exception: What was raised.
        """
        present = current.get()
        is_late = is_ended_by_deadline(exception) or (
            # Or before a connection was had.
            present is not None and present.has_ended and is_server_away(exception)
        )
        return unavailable_response(request, exception) if is_late else None

    def _seconds_of(self, request: HttpRequest) -> float:
        seconds = inf if self.settings.seconds is None else float(self.settings.seconds)
        name = self.settings.header
        given = None if name is None else request.headers.get(name)
        if name is None or given is None:
            return seconds
        found = _seconds_in(name, given)
        if found is None:
            logger.warning(
                "the header %s is ignored: %s is no time",
                name,
                one_line(repr(given[:40])),
                extra=event_fields("deadline_header_ignored", header=name),
            )
            return seconds
        return min(found, seconds)

    def _too_little(self, request: HttpRequest, seconds: float) -> HttpResponseBase:
        error = DeadlineExceeded(
            f"{max(0.0, seconds):g} s are left of the request's time, less than {SETTING}"
            f"['minimum'], {self.settings.minimum:g}"
        )
        response = unavailable_response(request, error)
        if response is None:  # pragma: no cover - told to mypy
            raise error
        return response


def _seconds_in(name: str, value: str) -> float | None:
    value = value.strip(" \t")
    if name.lower() == "grpc-timeout":
        found = _GRPC.fullmatch(value)
        return int(found[1]) * _GRPC_UNITS[found[2]] if found is not None else None
    if _NUMBER.fullmatch(value) is None:
        return None
    return float(value) / 1000 if name.lower().endswith("-ms") else float(value)


def _is_gone_by(request: HttpRequest) -> Callable[[], bool] | None:
    """Return what tells whether the client of a WSGI request has gone; None if nothing does."""
    if client_has_gone(request) is None:
        return None
    return lambda: client_has_gone(request) is True
