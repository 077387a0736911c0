"""The address of an engine's server: parsed, and refused where it is not on this machine.

In: a URL as it was typed. Out: an `Address` to connect to. The decision reads the parsed address
alone: nothing is sent, and no name is looked up. `localhost` means 127.0.0.1.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from prunescope.taxonomy.errors import PrunescopeError

_HINT = "for example --url http://127.0.0.1:8000"
_LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens: `host` is an IP address, or a name where remote ones are allowed."""

    scheme: str
    host: str
    port: int
    is_local: bool


def parse_address(url: str, *, allow_remote: bool) -> Address:
    """Parse the address of a server.

    Args:
        url: An address `http://HOST:PORT`, with nothing behind it but `/` or `/v1`.
        allow_remote: Whether the server may be on another machine.

    Raises:
        PrunescopeError: The text is no such address, or the server is not on this machine and
            `allow_remote` is not given.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise PrunescopeError("--url is no address", hint=_HINT) from None
    if parts.scheme not in _DEFAULT_PORTS or not host or any(c in url for c in "\\ \t\r\n"):
        raise PrunescopeError("--url is no address of http or https", hint=_HINT)
    if parts.username is not None or parts.password is not None:
        raise PrunescopeError("--url holds a user or a password", hint="remove them")
    if parts.path.rstrip("/") not in ("", "/v1") or parts.query or parts.fragment:
        raise PrunescopeError("--url names more than a server", hint=_HINT)
    connect_to, is_local = _host_on_this_machine(host)
    if not is_local and not allow_remote:
        raise PrunescopeError(
            "--url is not on this machine: prompts would be sent over the network",
            hint="give localhost, an address in 127.0.0.0/8 or ::1; or add --allow-remote",
        )
    port = _DEFAULT_PORTS[parts.scheme] if port is None else port
    if not 0 < port < 1 << 16:
        raise PrunescopeError("--url has no port that a server can have", hint=_HINT)
    return Address(parts.scheme, connect_to, port, is_local)


def _host_on_this_machine(host: str) -> tuple[str, bool]:
    """Return the host to connect to, and whether it is on this machine by its text alone.

    Other ways to write an address (127.1, 0x7f000001, ::ffff:127.0.0.1) and names count as remote.
    """
    if host == "localhost":
        return "127.0.0.1", True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host, False
    return host, "%" not in host and any(address in network for network in _LOOPBACK)
