"""The PROXY protocol, versions 1 and 2: who connected to the balancer, said before the first byte of the connection proper.

Source: haproxy's doc/proxy-protocol.txt, sections 2.1 and 2.2. Nothing is read beyond the header, and nothing is guessed: who must
send it and does not is refused. Additional fields (TLVs) are passed over.
"""

import re
from collections.abc import Awaitable
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Protocol

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
"""Of version 2: 12 bytes."""
FIRST = len(SIGNATURE)
"""No header of either version is shorter."""
_REST = 4
"""Bytes of version 2 that follow the signature and end with the length of what comes then."""
_LINE_MOST = 107
"""Of version 1, with its line's end."""
_BODY_MOST = 4096
"""Of version 2. Addresses take 36 bytes; what balancers add (TLS facts, ids) some hundred."""

_PORT = re.compile(r"0|[1-9][0-9]{0,4}", re.ASCII)
_IPV4, _IPV6 = 1, 2
_LOCAL, _PROXY = 0, 1


class BadProxyHeader(Exception):
    """A connection that must begin with a PROXY header does not. The text says how."""


class Source(Protocol):
    """What the header is read from: a connected socket."""

    def recv(self, most: int, /) -> Awaitable[bytes]:
        """Return some bytes, b"" at the end."""
        ...


async def read_header(source: Source) -> str | None:
    """Return the client's address, None where the proxy speaks for itself (a probe). Reads exactly the header.

    Raises BadProxyHeader. The caller sets the deadline.
    """
    first = await _exactly(source, FIRST)
    if first == SIGNATURE:
        rest = await _exactly(source, _REST)
        length = int.from_bytes(rest[2:])
        if length > _BODY_MOST:
            raise BadProxyHeader(f"version 2: {length} bytes of addresses and fields are too many")
        return parse_second(rest[0], rest[1], await _exactly(source, length))
    if not first.startswith(b"PROXY "):
        raise BadProxyHeader("the connection does not begin with a PROXY header")
    line = first
    while not line.endswith(b"\n"):
        if len(line) >= _LINE_MOST:
            raise BadProxyHeader("version 1: the line is too long")
        # One by one: what follows the line is not ours, and may be a TLS handshake.
        line += await _exactly(source, 1)
    return parse_first(line)


async def _exactly(source: Source, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = await source.recv(count - len(data))
        if not more:
            raise BadProxyHeader("the connection ended within the PROXY header")
        data += more
    return data


def parse_first(line: bytes) -> str | None:
    """Return the client's address of a line of version 1, None for UNKNOWN. Raises BadProxyHeader."""
    if len(line) > _LINE_MOST or not line.startswith(b"PROXY ") or not line.endswith(b"\r\n"):
        raise BadProxyHeader("version 1: this is no line of it")
    try:
        words = line[:-2].decode("ascii").split(" ")
    except UnicodeDecodeError:
        raise BadProxyHeader("version 1: not ASCII") from None
    if words[1] == "UNKNOWN":
        return None
    if len(words) != 6 or words[1] not in ("TCP4", "TCP6"):
        raise BadProxyHeader("version 1: expected TCP4, TCP6 or UNKNOWN, two addresses and two ports")
    _, family, source, destination, *ports = words
    kind = IPv4Address if family == "TCP4" else IPv6Address
    try:
        client, _ = kind(source), kind(destination)
    except AddressValueError:
        raise BadProxyHeader("version 1: bad address") from None
    if "%" in source or not all(_PORT.fullmatch(port) and int(port) <= 65535 for port in ports):
        raise BadProxyHeader("version 1: bad address or port")
    return _usual(client)


def parse_second(version_and_command: int, family_and_transport: int, body: bytes) -> str | None:
    """Return the client's address of version 2's fields, None for LOCAL and for families without one. Raises BadProxyHeader."""
    version, command = version_and_command >> 4, version_and_command & 0xF
    if version != 2 or command not in (_LOCAL, _PROXY):
        raise BadProxyHeader(f"version 2: unknown version or command {version_and_command:#04x}")
    if command == _LOCAL:
        return None
    family = family_and_transport >> 4
    size = {_IPV4: 4, _IPV6: 16}.get(family)
    if size is None:
        return None
    if len(body) < 2 * (size + 2):
        raise BadProxyHeader("version 2: too short for its addresses")
    kind = IPv4Address if family == _IPV4 else IPv6Address
    return _usual(kind(body[:size]))


def _usual(address: IPv4Address | IPv6Address) -> str:
    """Return an address as text: an IPv4 one as such, too, where a balancer listens to both kinds on one socket (`v4v6`).

    All of those are in one /64, and would be one client.
    """
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)
