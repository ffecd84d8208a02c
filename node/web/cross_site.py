"""Requests that another site's page has a browser send, with the name and password that the browser keeps for this registry. Pure.

The API asks for Basic, which browsers remember and send along whoever made them ask. A page can make any browser send a POST of
text, which is as good as JSON here, so that it could give away what its reader owns. Browsers say where a request comes from, and
no page can change that (Fetch Metadata, W3C; RFC 6454, 7). What is no browser says nothing.
"""

from typing import Protocol
from urllib.parse import urlsplit

_OWN = frozenset({"same-origin", "none"})
"""This very site, or somebody who typed it."""


class Headers(Protocol):
    """A request's, looked up whatever their case."""

    def get(self, name: str, /) -> str | None:
        """Return a header, if it is there."""


def shows_token(headers: Headers) -> bool:
    """Tell whether a request shows a token, which nobody's browser keeps and sends by itself, as it does with Basic."""
    return (headers.get("authorization") or "").lower().startswith("bearer ")


def is_foreign(headers: Headers) -> bool:
    """Tell whether a browser sends this for another site's page."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in _OWN
    origin = headers.get("origin")
    if origin is None:
        return False
    try:
        place = urlsplit(origin).netloc
    except ValueError:
        return True
    return place.lower() != (headers.get("host") or "").lower()
