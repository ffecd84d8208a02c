"""Where a request may go to whose URL somebody else has chosen: not into the operator's own networks, unless allowed. Pure."""

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
"""All that IANA gives out of IPv6; what is beside it leads somewhere else, if anywhere: site-local, IPv4 in other clothes."""
_ONLY_LOOK_PUBLIC: tuple[Network, ...] = (
    ipaddress.IPv4Network("192.0.0.0/24"),  # of protocols; a cloud's machines find its metadata there
    ipaddress.IPv4Network("192.88.99.0/24"),  # was the way to IPv6
    ipaddress.IPv4Network("168.63.129.16/32"),  # another cloud's services for the machine itself
)
_MOST_URL = 2000


def networks(texts: Sequence[str] | None) -> tuple[Network, ...]:
    """Return WEBHOOK_ALLOWED_NETWORKS as networks."""
    return tuple(ipaddress.ip_network(text) for text in texts or ())


def refuse_address(text: str, allowed: Sequence[Network]) -> str | None:
    """Return why nothing may be sent to an IP address, None if it may.

    Only what is reachable from everywhere, and what an operator allows; an IPv4 address inside an IPv6 one counts as itself.
    """
    try:
        address: Address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return f"{text[:60]} is not an address"
    if any(address.version == network.version and address in network for network in allowed):
        return None
    inner = _inside(address)
    if inner is not None:
        return refuse_address(str(inner), allowed)
    if address.is_global and not address.is_multicast and _is_anywhere(address):
        return None
    return f"{address} is not a public address, and WEBHOOK_ALLOWED_NETWORKS does not allow it"


def _is_anywhere(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        return address in _GLOBAL_UNICAST
    return not any(address in network for network in _ONLY_LOOK_PUBLIC)


def _inside(address: Address) -> ipaddress.IPv4Address | None:
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in _NAT64:
        return ipaddress.IPv4Address(address.packed[12:])
    return address.ipv4_mapped or address.sixtofour


def refuse_url(url: str, allowed: Sequence[Network]) -> str | None:
    """Return why a URL cannot be a webhook's, None if it can. Names are looked up only when it is used."""
    if len(url) > _MOST_URL or not url.isascii() or not url.isprintable() or " " in url:
        return f"write at most {_MOST_URL} printable ASCII characters"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return "it is not a URL"
    if parts.scheme not in ("http", "https") or not host or port == 0:
        return "write a URL such as https://hooks.example.com/registry"
    if "@" in parts.netloc:
        return "write it without a user and password: the signature says who sends"
    if parts.fragment:
        return "write it without a fragment"
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return None
    return refuse_address(host, allowed)
