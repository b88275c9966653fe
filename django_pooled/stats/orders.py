"""Orders to the processes of a site, as `manage.py poolctl` writes them on their sockets."""

from __future__ import annotations

import json
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "LONGEST_ORDER",
    "LONGEST_PAUSE",
    "ORDER",
    "ORDERS_VERSION",
    "REFUSED",
    "Answer",
    "Order",
    "OrderRefused",
    "Verb",
    "parse_order",
]

ORDER = b"order "
"""Begins an order, in place of a question. A process that is too old for orders takes it for a
question, and its answer says nothing of orders."""

ORDERS_VERSION = 1
"""Version of the orders that this process gives and takes."""

LONGEST_ORDER = 64 * 1024
"""Bytes of an order; the addresses of all databases of the site are in it."""

REFUSED = "refused"
"""The outcome of an order that a pool did not obey."""

LONGEST_PAUSE = 600.0
"""Seconds that a pause may last. Whatever becomes of its operator, it ends by itself."""

MOST_CONNECTIONS = 10_000
"""The largest ``max_size`` that can be ordered."""

Verb = Literal["look", "pause", "resume", "drain", "resize", "reset-stats"]
"""What can be ordered. "look" changes nothing, and its answer is as any other."""


class OrderRefused(Exception):
    """An order that is not obeyed; the message is a sentence for the operator."""


class Order(NamedTuple):
    """One order to all pools of a site in a process, or to those of one database."""

    verb: Verb
    site: str
    """Key of the site."""
    databases: Mapping[str, str] = MappingProxyType({})
    """The site's databases: alias and address. A pool of a test's database is not among them."""
    aliases: list[str] | None = None
    """The databases that it is for; None for all of the site."""
    token: str = ""
    """Tells the run of the command from others, which give orders too. With one, "resume" ends the
    pause of that run only."""
    seconds: float = 0.0
    """How long a pause lasts."""
    stands: bool = False
    """Whether a pause is for the processes too that start before it ends."""
    renews: bool = False
    """Whether it makes a pause of the same run last longer, and begins none."""
    min_size: int = 0
    max_size: int = 0

    @property
    def undoes(self) -> bool:
        """Whether it undoes what its own run of the command did, and no more: it is never late."""
        return self.verb == "resume" and self.token != ""

    def encoded(self) -> bytes:
        """Return the line that is sent."""
        values = self._asdict() | {"databases": dict(self.databases)}
        return ORDER + f"{ORDERS_VERSION} {json.dumps(values)}\n".encode()

    def is_for(self, alias: str, server: str, site: str) -> bool:
        """Tell whether it is for the pool of this database."""
        return (
            site == self.site
            and (self.aliases is None or alias in self.aliases)
            # One that the process has added to its settings is of the site too.
            and self.databases.get(alias, server) == server
        )


class Answer(NamedTuple):
    """What became of an order in one pool."""

    alias: str
    pool: str
    """Its id, as in the report."""
    outcome: str
    """In one word, for programs: what was done, or `REFUSED`."""
    sentence: str
    """For people."""


def parse_order(line: bytes) -> Order:
    """Read an order.

    Raises:
        OrderRefused: It is not whole, is of another version, or asks for what there is not.
    """
    _, _, rest = line.partition(b" ")
    version, _, text = rest.partition(b" ")
    if version != b"%d" % ORDERS_VERSION:
        given = version[:10].decode(errors="replace").strip()
        raise OrderRefused(
            f"this process takes orders of version {ORDERS_VERSION}, not {given!r}: run poolctl "
            "with the release of django_pooled that the process runs"
        )
    if not line.endswith(b"\n"):
        raise OrderRefused("the order did not arrive whole")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise OrderRefused("the order is not JSON") from None
    if not isinstance(values, dict):
        raise OrderRefused("the order is not a dictionary")
    unknown = values.keys() - set(Order._fields)
    if unknown:
        raise OrderRefused(f"the order has an unknown value {min(unknown)!r}")
    for name, (words, test) in _EXPECTED.items():
        if name in values and not test(values[name]):
            raise OrderRefused(f"{name} has to be {words}")
    if "verb" not in values or "site" not in values:
        raise OrderRefused("the order lacks its verb or its site")
    return Order(**values)


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 300


def _texts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_text, [*value.keys(), *value.values()]))


def _size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MOST_CONNECTIONS


def _seconds(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= LONGEST_PAUSE


_EXPECTED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "verb": (f"one of {', '.join(get_args(Verb))}", lambda value: value in get_args(Verb)),
    "site": ("a text", _text),
    "databases": ("a dictionary of texts", _texts),
    "aliases": (
        "a list of texts, or null",
        lambda value: value is None or (isinstance(value, list) and all(map(_text, value))),
    ),
    "token": ("a text", _text),
    "seconds": (f"seconds up to {LONGEST_PAUSE:g}", _seconds),
    "stands": ("true or false", lambda value: isinstance(value, bool)),
    "renews": ("true or false", lambda value: isinstance(value, bool)),
    "min_size": (f"a whole number up to {MOST_CONNECTIONS}", _size),
    "max_size": (f"a whole number up to {MOST_CONNECTIONS}", _size),
}
"""What each value has to be."""
