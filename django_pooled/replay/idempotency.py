"""What a request says of itself: its idempotency key, its fingerprint, and who has sent it.

The header field is that of draft-ietf-httpapi-idempotency-key-header: a string of structured
fields (RFC 9651). The bare form that payment APIs take, without quotes, is the same key.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from django.http import HttpRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from django.core.files.uploadedfile import UploadedFile

__all__ = [
    "BadKey",
    "IdempotencyOptions",
    "KeyOf",
    "MissingKey",
    "ScopeOf",
    "fingerprint_of",
    "request_among",
]

KeyOf: TypeAlias = Callable[[HttpRequest], str | None]
ScopeOf: TypeAlias = Callable[[HttpRequest], str | int | None]

LONGEST = 255
"""Characters of a key, as payment APIs have it."""

SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
"""Methods that have no effect to be repeated; keys are not looked at."""

_STRING = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"(?:\s*;.*)?')
"""A string of structured fields, and parameters, which mean nothing here."""
_BARE = re.compile(r"[!#-+\--~]+")
"""What is visible in ASCII, but for quotes and for the comma that joins two header lines."""
_ESCAPED = re.compile(r'\\(["\\])')
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_HEADER = re.compile(r"[A-Za-z0-9-]+")


class BadKey(ValueError):
    """The client has sent a key that is none."""


class MissingKey(BadKey):
    """The client has sent none, and one is required."""


@dataclass(frozen=True)
class IdempotencyOptions:
    """The arguments of ``retry_transaction`` about idempotency keys.

    Raises:
        TypeError: A value of a wrong type.
        ValueError: A value that cannot work.
    """

    key: str | KeyOf
    required: bool
    scope: ScopeOf | None
    expiry: float

    @classmethod
    def of(
        cls, key: str | KeyOf | None, required: bool, scope: ScopeOf | None, expiry: float
    ) -> IdempotencyOptions | None:
        """Return the options that were given; None if there are no keys."""
        if key is not None:
            return cls(key, required, scope, expiry)
        if required or scope is not None:
            name = "idempotency_required" if required else "idempotency_scope"
            raise ValueError(f"{name} needs idempotency_key, such as 'Idempotency-Key'")
        return None

    def __post_init__(self) -> None:
        if isinstance(self.key, str):
            if not _HEADER.fullmatch(self.key):
                raise ValueError(
                    f"idempotency_key is {self.key!r}; expected the name of a header, such as "
                    f"'Idempotency-Key'"
                )
        elif not callable(self.key):
            raise TypeError(
                f"idempotency_key is {self.key!r}; expected the name of a header, or a callable "
                f"that takes the request"
            )
        if not isinstance(self.required, bool):
            raise TypeError(f"idempotency_required is {self.required!r}; expected True or False")
        if self.scope is not None and not callable(self.scope):
            raise TypeError(
                f"idempotency_scope is {self.scope!r}; expected a callable that takes the request"
            )
        if not isinstance(self.expiry, int | float) or isinstance(self.expiry, bool):
            raise TypeError(f"idempotency_expiry is {self.expiry!r}; expected seconds")

    @property
    def name(self) -> str:
        """What the key is called towards clients."""
        return self.key if isinstance(self.key, str) else "Idempotency-Key"

    def key_of(self, request: HttpRequest) -> str | None:
        """Return the request's key; None if it has none, or needs none.

        Raises:
            BadKey: It is no key, or missing.
        """
        if request.method in SAFE:
            return None
        if isinstance(self.key, str):
            header = request.headers.get(self.key)
            key = None if header is None else _parse(header.strip())
        else:
            key = self.key(request)
            if key is not None and not isinstance(key, str):
                raise TypeError(
                    f"idempotency_key returned a {type(key).__name__}; expected a string or None"
                )
        if key is None:
            if self.required:
                raise MissingKey(
                    f"This request has to have the header {self.name}, with a value of its own "
                    f"that each repeat of it bears too."
                )
            return None
        if not key or len(key) > LONGEST or _CONTROLS.search(key):
            raise BadKey(f"A key has 1 to {LONGEST} characters, and no control characters.")
        return key

    def digest_of(self, request: HttpRequest, key: str) -> bytes:
        """Return what the key is stored as: the same key of another user has another digest."""
        if self.scope is None:
            kind, scope = "", repr(_scope_of(request))
        else:
            kind, scope = "given", repr(_given(self.scope(request)))
        return _digest([kind.encode(), scope.encode(), key.encode()])


def request_among(args: Sequence[object], kwargs: Mapping[str, object]) -> HttpRequest:
    """Return the request that a view is called with.

    Raises:
        TypeError: There is none.
    """
    for value in (*args, *kwargs.values()):
        if isinstance(value, HttpRequest):
            return value
    raise TypeError(
        "idempotency_key is for views: what retry_transaction decorates was called without a "
        "django.http.HttpRequest. Decorate dispatch of a class-based view, by method_decorator, "
        "and with Django REST framework dispatch too, or write @retry_transaction above @api_view."
    )


def fingerprint_of(request: HttpRequest) -> bytes:
    """Return what tells this request from another one, and is the same if it is sent again.

    Of forms the fields and files count, since browsers make a new boundary each time, and Django's
    CSRF token is another one on each page. Files are left as they were. Django reads forms that are
    sent by POST; of others, the parts between the boundaries count.
    """
    parts = [
        str(request.method).encode(),
        request.get_full_path().encode(),
        (request.content_type or "").encode(),
    ]
    if request.method == "POST" and request.content_type in _FORMS:
        for name, values in request.POST.lists():
            if name != "csrfmiddlewaretoken":
                for value in values:
                    parts += [b"field", name.encode(), value.encode()]
        for name, files in request.FILES.lists():
            for file in files:
                parts += [b"file", name.encode(), *_file(file)]
    else:
        parts += _unread(request)
    return _digest(parts)


_FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")


def _unread(request: HttpRequest) -> list[bytes]:
    """Return what counts of a body that Django does not read."""
    parameters = request.content_params or {}
    boundary = parameters.get("boundary")
    if boundary is None or request.content_type != _FORMS[0]:
        return [str(request.META.get("CONTENT_TYPE", "")).encode(), request.body]
    # It cannot be in the parts themselves (RFC 2046, section 5.1.1).
    others = {**parameters, "boundary": ""}
    return [repr(sorted(others.items())).encode(), *request.body.split(b"--" + boundary.encode())]


def _file(file: UploadedFile[Any]) -> list[bytes]:
    content = hashlib.sha256()
    for chunk in file.chunks():
        content.update(chunk)
    file.seek(0)
    return [(file.name or "").encode(), (file.content_type or "").encode(), content.digest()]


def _digest(parts: Iterable[bytes]) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        # No two lists of parts look alike.
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()


def _parse(value: str) -> str:
    if found := _STRING.fullmatch(value):
        return _ESCAPED.sub(r"\1", found[1])
    if _BARE.fullmatch(value):
        return value
    raise BadKey(
        "A key is one string of visible ASCII characters, such as "
        '"8e03978e-40d5-43e8-bc93-6894a57f9324", with the quotes or without.'
    )


def _given(scope: object) -> str | int | None:
    """Return what a callable says of whose a key is, if it is the same for each repeat.

    Raises:
        TypeError: It is an object, whose repr() may be another one each time.
    """
    if scope is None or isinstance(scope, int):
        return scope
    if isinstance(scope, str):
        return str(scope)
    raise TypeError(
        f"idempotency_scope returned a {type(scope).__name__}; expected a string, a number or "
        f"None, such as request.user.pk, or str() of it"
    )


def _scope_of(request: HttpRequest) -> tuple[str, object]:
    """Return whose key it is: the user's, as far as that is known before the view runs."""
    user: Any = getattr(request, "user", None)
    if user is not None and user.is_authenticated:
        return ("user", str(user.pk))
    # Frameworks for APIs look at it in the view. A digest: it is part of one itself.
    if authorization := request.headers.get("Authorization"):
        return ("authorization", authorization)
    return ("session", getattr(getattr(request, "session", None), "session_key", None))
