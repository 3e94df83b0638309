"""On the path of a notebook's kernel, and so of the processes that it starts: Python's sockets reach this machine alone."""

import ipaddress
import socket
from typing import Any

_NAMES = {None, "", b"", "localhost", b"localhost"}


def _refuse_elsewhere(host: Any) -> None:
    """Raises OSError for a host that is not this machine."""
    if host in _NAMES:
        return
    try:
        here = ipaddress.ip_address(host.decode() if isinstance(host, bytes) else host).is_loopback
    except ValueError:  # a name, which is asked of the network
        here = False
    if not here:
        raise OSError(f"a notebook has to run offline, and this one wanted {host!r}")


def _guarded(name: str, at: int) -> Any:
    """A method of sockets whose argument number `at` is an address."""
    method = getattr(socket.socket, name)

    def guarded(self: socket.socket, *arguments: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6) and len(arguments) > at:
            _refuse_elsewhere(arguments[at][0])
        return method(self, *arguments)

    return guarded


for _name, _at in (("connect", 0), ("connect_ex", 0), ("sendto", -1)):
    setattr(socket.socket, _name, _guarded(_name, _at))
_getaddrinfo = socket.getaddrinfo


def _looked_up(host: Any, *arguments: Any, **options: Any) -> Any:
    _refuse_elsewhere(host)
    return _getaddrinfo(host, *arguments, **options)


socket.getaddrinfo = _looked_up
