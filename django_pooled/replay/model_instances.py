"""Model instances that an attempt saves, with their state before that."""

from __future__ import annotations

from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol
from weakref import ref

from django.db.models.signals import pre_save

from .object_state import Snapshot

if TYPE_CHECKING:
    from django.db.models import Model

__all__ = ["Saves", "current", "listen"]

_DEPTH = 4
"""As far as the instances that are related to it."""


class Recorder(Protocol):
    """Takes note of what an attempt saves."""

    def note_save(self, instance: Model) -> None:
        """*instance* is about to be saved."""


class Saves:
    """The instances that are saved during one attempt, with their state before the first save.

    They are not kept alive by this: instances that an attempt creates and drops are freed.

    Args:
        kept: The objects that are restored anyway.
    """

    def __init__(self, kept: Snapshot | None) -> None:
        self._kept = kept
        self._noted: dict[int, tuple[ref[Model], dict[str, Any], Snapshot]] = {}

    def note(self, instance: Model) -> None:
        """Keep the state of *instance*, which is about to be saved."""
        number = id(instance)
        if number in self._noted or (self._kept is not None and self._kept.holds(instance)):
            return
        parts = Snapshot()
        attributes = vars(instance).copy()
        parts.keep_all(attributes.values(), _DEPTH)
        # Not a method, which would keep self alive as long as the instance.
        forget = partial(_forget, self._noted, number)
        self._noted[number] = (ref(instance, forget), attributes, parts)

    def restore(self) -> None:
        """Restore those that still exist."""
        # A list, since one may be freed meanwhile.
        for reference, attributes, parts in list(self._noted.values()):
            instance = reference()
            if instance is not None:
                vars(instance).clear()
                vars(instance).update(attributes)
                parts.restore()
        self._noted.clear()


def _forget(noted: dict[int, Any], number: int, _: object) -> None:
    noted.pop(number, None)


# A context follows the work through asgiref's switches between threads.
current: ContextVar[Recorder | None] = ContextVar("django_pooled.saves", default=None)


def listen() -> None:
    """Take note of every save of this process that happens during an attempt."""
    pre_save.connect(_before_save, weak=False, dispatch_uid="django_pooled.replay")


def _before_save(instance: Model, **_: object) -> None:
    recorder = current.get()
    if recorder is not None:
        recorder.note_save(instance)
