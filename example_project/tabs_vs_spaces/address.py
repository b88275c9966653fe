"""Where the site listens, and whether it answers there."""

from __future__ import annotations

import http.client
import ipaddress
import os
import socket
from typing import NamedTuple

EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""What to connect to instead of an address that stands for all of this machine's."""


class AddressUnusable(Exception):
    """Nothing can listen there; the message says why."""


class Address(NamedTuple):
    """The host, as a number, and the port of a listening socket."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return is_loopback(self.host)

    def connect(self, timeout: float) -> http.client.HTTPConnection:
        """Return a connection to it from this machine, not yet opened."""
        host = EVERYWHERE.get(self.host, self.host)
        return http.client.HTTPConnection(host, self.port, timeout=timeout)

    def answers(self) -> bool:
        """Whether the page can be had there."""
        connection = self.connect(timeout=1)
        try:
            connection.request("GET", "/", headers={"Host": "localhost"})
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Bound here and handed to gunicorn: a port that is taken is known before anything starts,
    and nobody can take it in between.

    Raises:
        AddressUnusable: The port is taken, or the host is none of this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = error.strerror
        if error.errno is not None and not isinstance(error, socket.gaierror):
            # Without the address, which Python adds to the words.
            reason = os.strerror(error.errno)
        raise AddressUnusable(f"Can't listen on {host} port {port}: {reason}.") from error


def is_loopback(host: str) -> bool:
    """Whether this is a name or number that leads to this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
