"""From which address a request comes: the other end of the connection, or what a trusted proxy says of its own."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

_MAX_HOPS = 32  # entries of the header that are looked at, from its end
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Addresses:
    """Knows the trusted proxies (`trusted`: addresses and networks)."""

    def __init__(self, trusted: Iterable[str]) -> None:
        self._trusted = tuple(ipaddress.ip_network(network) for network in trusted)

    def client(self, peer: str, headers: dict[bytes, bytes]) -> str:
        """The client's address.

        `X-Forwarded-For` counts only from a trusted peer, and is read from its end: each proxy appends whom it heard,
        so what stands before the first that is not trusted is anybody's claim.
        """
        address = _parsed(peer)
        if address is None:
            return peer
        if self._is_trusted(address) and (header := headers.get(b"x-forwarded-for")) is not None:
            for hop in reversed(header.decode("latin-1").rsplit(",", _MAX_HOPS)[-_MAX_HOPS:]):
                found = _parsed(hop.strip(" \t"))
                if found is None:
                    break
                address = found
                if not self._is_trusted(address):
                    break
        return str(address)

    def _is_trusted(self, address: _Address) -> bool:
        return any(address in network for network in self._trusted)


def neighbourhood(client: str) -> str:
    """What one person is taken to have of addresses: an IPv4 address, or the /64 of an IPv6 one."""
    address = _parsed(client)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))
    return client if address is None else str(address)


def _parsed(text: str) -> _Address | None:
    """An address, maybe with brackets or a port, as some proxies write it."""
    if match := re.fullmatch(r"\[([^\]]*)\](:\d{1,5})?|(\d+\.\d+\.\d+\.\d+):\d{1,5}", text, re.ASCII):
        text = match[1] or match[3] or ""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        return address.ipv4_mapped or ipaddress.IPv6Address(int(address))  # without a zone
    return address
