"""Where a request comes from when proxies stand in between: only those that the operator lists are believed. Pure.

A header can be written by anybody. What a listed proxy says counts; of the chain in X-Forwarded-For the rightmost address that is
no listed proxy is the client's, because everything left of it was sent by that very address.
"""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from attrs import frozen

from node.config.values import Unfit, parse_host

RawHeaders = Sequence[tuple[bytes, bytes]]
"""Header names in lower case, with their values."""

_FOR, _PROTO, _HOST = b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"
_FORWARDED = frozenset({_FOR, _PROTO, _HOST})
_TOLD = _FORWARDED | {b"x-request-id"}
"""What a listed proxy is believed."""


@frozen
class Origin:
    """Where a request really comes from, and its headers without those by which proxies say so."""

    client: str
    headers: RawHeaders
    scheme: str | None = None
    """What the client spoke to the first proxy, "http" or "https"; None where no proxy says so."""
    believed: bool = False
    """A listed proxy says something about this request."""


@frozen
class Proxies:
    """The networks whose word counts."""

    networks: tuple[IPv4Network | IPv6Network, ...] = ()

    def trusts(self, address: str) -> bool:
        """Return whether an address is a listed proxy's. What is no address is not."""
        if not self.networks:
            return False
        parsed = _address(address)
        return parsed is not None and any(parsed in network for network in self.networks)

    def origin(self, peer: str, headers: RawHeaders) -> Origin:
        """Return where a request comes from that `peer` sent. X-Forwarded-Host, from a listed proxy, takes the place of Host."""
        if not any(name in _TOLD for name, _ in headers):
            return Origin(peer, headers)
        rest = [header for header in headers if header[0] not in _FORWARDED]
        if not self.trusts(peer):
            return Origin(peer, rest)
        scheme = _last(headers, _PROTO).lower()
        host = _last(headers, _HOST)
        if _is_host(host):
            rest = [(b"host", host.encode()), *(header for header in rest if header[0] != b"host")]
        return Origin(self._client(peer, headers), rest, scheme if scheme in ("http", "https") else None, True)

    def _client(self, peer: str, headers: RawHeaders) -> str:
        """Return the rightmost address that is no listed proxy's; where all are, the leftmost. An unreadable one ends the chain."""
        client = peer
        for text in reversed(_chain(headers)):
            address = _address(text)
            if address is None:
                break
            client = str(address)
            if not self.trusts(client):
                break
        return client


NO_PROXIES = Proxies()


def _chain(headers: RawHeaders) -> Sequence[str]:
    values = [value.decode("latin-1") for name, value in headers if name == _FOR]
    return [text.strip() for value in values for text in value.split(",")]


def _last(headers: RawHeaders, wanted: bytes) -> str:
    """Return what the nearest proxy wrote: the last word of the last header of that name, "" without one."""
    values = [value.decode("latin-1") for name, value in headers if name == wanted]
    return values[-1].rpartition(",")[2].strip() if values else ""


def _is_host(text: str) -> bool:
    try:
        parse_host(text)
    except Unfit:
        return False
    return text.isascii()


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """Return the address of "192.0.2.1", "192.0.2.1:4711", "2001:db8::1" or "[2001:db8::1]:4711"; None where it is none."""
    bare = text
    if text.startswith("["):
        bare = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        bare = text.partition(":")[0]
    try:
        # A scope ("fe80::1%eth0") is of this machine only, and any text may stand there.
        address = ip_address(bare.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
