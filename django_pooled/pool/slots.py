"""The slots of a pool: each is taken for as long as its holder exists."""

from __future__ import annotations

from itertools import count
from weakref import ref

__all__ = ["Slot", "Slots"]


class Slot:
    """The right to one of a pool's connections: of the attempt to open it, then of the connection.

    Args:
        number: Tells it from every other slot of its pool, those of earlier times included.
    """

    __slots__ = ("__weakref__", "number")

    def __init__(self, number: int) -> None:
        self.number: int = number


class Slots:
    """Which slots of a pool are taken.

    Counters that go up and down are wrong for good after an exception between two steps, and one
    may arrive between any two: a time limit's, Ctrl-C, any other signal handler's. So nothing is
    counted. A slot is known by a weak reference, its holder has the only strong one, and the slot
    of a holder that exists no more is free.

    The pool's lock guards what changes here. Each change is one operation on one dictionary or
    set, which no exception divides.
    """

    def __init__(self) -> None:
        self._numbers = count()
        self._taken: dict[int, ref[Slot]] = {}
        self._connected: set[int] = set()

    def __len__(self) -> int:
        return sum(1 for slot in list(self._taken.values()) if slot() is not None)

    @property
    def in_place(self) -> int:
        """Slots that have a connection."""
        return sum(
            1
            for number, slot in list(self._taken.items())
            if number in self._connected and slot() is not None
        )

    @property
    def opening(self) -> int:
        """Slots whose connection is being opened."""
        return sum(
            1
            for number, slot in list(self._taken.items())
            if number not in self._connected and slot() is not None
        )

    def take(self) -> Slot:
        """Take a slot for an attempt to open a connection."""
        slot = Slot(next(self._numbers))
        self._taken[slot.number] = ref(slot)
        return slot

    def connected(self, slot: Slot) -> None:
        """Note that the attempt has succeeded; its connection holds the slot from now on."""
        self._connected.add(slot.number)

    def restore(self, slot: Slot) -> bool:
        """Go on knowing the slot of a holder that was found; return whether it is its own still.

        The garbage collector clears every weak reference to what it is about to free, also to what
        a finalizer then keeps. Called by finalizers, so without the lock: what comes in between
        gives the slot up, and its holder has none.
        """
        if slot.number not in self._taken:
            return False
        self._taken[slot.number] = ref(slot)
        return True

    def give_up(self, slot: Slot) -> bool:
        """Give a slot up; tell whether it was taken until now."""
        self._connected.discard(slot.number)
        return self._taken.pop(slot.number, None) is not None

    def give_up_lost(self) -> int:
        """Give up the slots that nothing holds; return how many of them had a connection."""
        lost = [number for number, slot in list(self._taken.items()) if slot() is None]
        connected = len(self._connected.intersection(lost))
        for number in lost:
            self._connected.discard(number)
            self._taken.pop(number, None)
        return connected
