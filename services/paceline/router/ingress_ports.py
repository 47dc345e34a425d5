"""Ports that several replicas share, and nobody else.

Replicas of a router listen on one port with SO_REUSEPORT: the kernel spreads the connections, and those of a replica
that died come back to the others. The option also shares a port, silently, with whoever else sets it, so the host
process makes sure that a port is free before it hands it out, and holds it while replicas come and go.
"""

from __future__ import annotations

import socket

from paceline.speculation.errors import InvalidRequest


def bracketed(host: str) -> str:
    """A host as it stands before a colon and a port."""
    return f"[{host}]" if ":" in host else host


class Reservation:
    """A port held, not listened on, from construction to ``close``.

    Raises:
        InvalidRequest: naming the configuration's field, if the port is taken or the address is not ours.
    """

    def __init__(self, field: str, host: str, port: int) -> None:
        self.host = host
        try:
            if port:
                _bind(host, port, socket.SO_REUSEADDR).close()  # fails if anyone holds it, sharing or not
            # Without SO_REUSEADDR: with it, another host's check above would pass over a socket that doesn't listen.
            self._socket = _bind(host, port, socket.SO_REUSEPORT)
        except OSError as error:
            hint = f"{error.strerror or error}; choose another port, or 0 for a free one"
            raise InvalidRequest(field, expected="a free port", got=f"{bracketed(host)}:{port}", hint=hint) from None
        self.port: int = self._socket.getsockname()[1]

    @property
    def address(self) -> str:
        """host:port"""
        return f"{bracketed(self.host)}:{self.port}"

    def close(self) -> None:
        """Let others have the port."""
        self._socket.close()


def shared_socket(host: str, port: int) -> socket.socket:
    """A socket bound to a reserved port, to listen on beside others. Raises OSError."""
    return _bind(host, port, socket.SO_REUSEPORT, socket.SO_REUSEADDR)


def _bind(host: str, port: int, *options: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind, protocol)
    try:
        for option in options:
            bound.setsockopt(socket.SOL_SOCKET, option, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound
