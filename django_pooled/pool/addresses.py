"""The addresses that connection parameters lead to: each host of a list, each address of a name."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial
from ipaddress import ip_address
from random import shuffle
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg

from .psycopg_private import parameter_of, split_hosts
from .time_limit import in_a_thread, over_within, start

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Address", "Addresses"]

PATIENCE = 1.0
"""Seconds after which a name is taken for what it last was, and other hosts are not kept waiting.

A resolver that is away is given up after 5 seconds or more for each of its servers."""

# It is known that there is no such name, or none with an address. Other failures are passing ones.
_NO_SUCH_NAME = {getattr(socket, name, None) for name in ("EAI_NONAME", "EAI_NODATA")}


class Address(NamedTuple):
    """Where one attempt leads to."""

    host: str
    """As the settings have it; empty for libpq's own default."""
    hostaddr: str
    port: str
    wanted: str
    """What ``target_session_attrs`` asks for there; empty for anything."""

    def __str__(self) -> str:
        where = self.host or self.hostaddr or "the default host"
        port = f":{self.port}" if self.port else ""
        addr = f" ({self.hostaddr})" if self.hostaddr not in ("", where) else ""
        return f"{where}{port}{addr}"

    @property
    def description(self) -> str:
        """As psycopg names it where it lists failures."""
        named = [part or None for part in (self.host, self.port, self.hostaddr)]
        return "host: {!r}, port: {!r}, hostaddr: {!r}".format(*named)


Name = tuple[str, str]
Found = list[tuple[Address, "Mapping[str, Any]"]]


class Addresses:
    """Finds the addresses for one pool's connections, and remembers those of names.

    Names are resolved anew for each connection, as psycopg does, so a change is followed by the
    next one. While no answer comes, or the resolver fails, the last addresses count; where it says
    that there is no such name, they do not (as in RFC 8767).

    Args:
        name: For the names of threads.
    """

    def __init__(self, name: str) -> None:
        self._thread_name = f"{name}-resolves"
        self._lock = threading.Lock()  # guards all below
        self._asked: dict[Name, Future[list[str]]] = {}
        self._known: dict[Name, list[str]] = {}
        self._slow: set[Name] = set()  # without an answer in time, and not waited for

    def of(
        self, parameters: Mapping[str, Any], limit: float
    ) -> tuple[Found, list[tuple[Address, psycopg.Error]]]:
        """Return all addresses with their parameters, in order; and what could not be resolved.

        Args:
            parameters: Connection parameters, with lists of hosts or without.
            limit: Seconds to wait for the first, if there is none.

        Raises:
            psycopg.OperationalError: The lists of hosts, addresses and ports do not match.
        """
        wanted = parameter_of(parameters, "target_session_attrs")
        hosts = [_Host.of(each) for each in split_hosts(parameters)]
        names = {host.name for host in hosts if host.name is not None}
        is_needed = all(host.name is not None for host in hosts)
        resolved = self._resolve(names, limit if is_needed else 0.0) if names else {}
        found: Found = []
        failed: list[tuple[Address, psycopg.Error]] = []
        for host in hosts:
            if host.name is None:
                found.append(host.at(host.known_address, wanted))
                continue
            answer = resolved[host.name]
            if isinstance(answer, list):
                found += [host.at(each, wanted) for each in answer]
            else:
                # In psycopg's words.
                error = psycopg.OperationalError(f"failed to resolve host {host.host!r}: {answer}")
                failed.append((host.at("", wanted)[0], error))
        if parameter_of(parameters, "load_balance_hosts") == "random":
            shuffle(found)
        if wanted == "prefer-standby":
            # As psycopg, which takes such a list apart itself: standbys first, then any.
            found = [_asking(each, kind) for kind in ("standby", "") for each in found]
        return found, failed

    def _resolve(self, names: Iterable[Name], limit: float) -> dict[Name, list[str] | Exception]:
        began = monotonic()
        asked = {name: self._ask(name) for name in names}
        with self._lock:
            waited_for = [future for name, future in asked.items() if name not in self._slow]
        wait(waited_for, PATIENCE)
        with self._lock:
            self._slow.update(name for name, future in asked.items() if not future.done())
        while True:
            answers = {name: self._answer(name, future) for name, future in asked.items()}
            under_way = [future for future in asked.values() if not future.done()]
            left = began + limit - monotonic()
            if not under_way or left <= 0 or any(isinstance(it, list) for it in answers.values()):
                return answers
            wait(under_way, left, FIRST_COMPLETED)

    def _answer(self, name: Name, future: Future[list[str]]) -> list[str] | Exception:
        known = self._known.get(name)
        if not over_within(future, 0.0):
            return known or TimeoutError("no answer in time, timed out")
        error = future.exception()
        if error is None:
            return future.result()
        if isinstance(error, OSError) and error.errno not in _NO_SUCH_NAME and known:
            return known
        if not isinstance(error, OSError):
            raise error
        return error

    def _ask(self, name: Name) -> Future[list[str]]:
        """Resolve a name in a thread of its own, or join the one that does so now."""
        with self._lock:
            future = self._asked.get(name)
            if future is not None:
                return future
            future = self._asked[name] = Future()
        future.add_done_callback(partial(self._forget, name))
        return start(partial(self._resolved, name), in_a_thread(self._thread_name), future)

    def _resolved(self, name: Name) -> list[str]:
        host, port = name
        kind = {"proto": socket.IPPROTO_TCP, "type": socket.SOCK_STREAM}
        found = [str(each[4][0]) for each in socket.getaddrinfo(host, port, **kind)]
        with self._lock:
            self._known[name] = found
            self._slow.discard(name)
        return found

    def _forget(self, name: Name, future: Future[list[str]]) -> None:
        with self._lock:
            del self._asked[name]


class _Host(NamedTuple):
    """One host of the list, before its name is resolved."""

    parameters: Mapping[str, Any]
    host: str
    hostaddr: str
    port: str

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> _Host:
        found = [parameter_of(parameters, name) for name in ("host", "hostaddr", "port")]
        return cls(parameters, *found)

    @property
    def name(self) -> Name | None:
        """Name and port to resolve; None for an address, a socket's folder, and libpq's default."""
        is_path = self.host.startswith(("/", "@")) or self.host[1:2] == ":"
        if not self.host or is_path or self.hostaddr or _is_ip_address(self.host):
            return None
        return self.host, self.port or "5432"

    @property
    def known_address(self) -> str:
        """The address, where no name has to be resolved; empty for a socket."""
        return self.hostaddr or (self.host if _is_ip_address(self.host) else "")

    def at(self, hostaddr: str, wanted: str) -> tuple[Address, Mapping[str, Any]]:
        """Return one address of it, and the parameters that lead there."""
        parameters = {**self.parameters, "hostaddr": hostaddr} if hostaddr else self.parameters
        return Address(self.host, hostaddr, self.port, wanted), parameters


def _asking(
    found: tuple[Address, Mapping[str, Any]], wanted: str
) -> tuple[Address, Mapping[str, Any]]:
    address, parameters = found
    return address._replace(wanted=wanted), {**parameters, "target_session_attrs": wanted or "any"}


def _is_ip_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
