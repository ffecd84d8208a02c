"""Content negotiation for manifests: whether a client that asks by tag can use what the tag points to. Pure."""

import json
import re
from collections.abc import Mapping
from functools import lru_cache

INDEX_TYPES = frozenset(
    {"application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"}
)
IMAGE_TYPES = frozenset(
    {"application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"}
)

LONGEST = 256 * 1024
"""Bytes of an index that is looked into, of some 900 children: every pull by a client that takes none of its type reads it anew."""

_USUAL = 1024
"""Characters of a header that is remembered."""

_ZERO = re.compile(r"q\s*=\s*0(\.0{0,3})?")


def accepts(header: str | None, media_type: str) -> bool:
    """Tell whether an Accept header allows a media type: the most specific range decides (RFC 9110, 12.5.1).

    No header allows everything.
    """
    usual = header is None or len(header) <= _USUAL
    return _kept(header, media_type) if usual else _allows(_read(header), media_type)


def _read(header: str | None) -> Mapping[str, bool] | None:
    """Return the ranges of a header, each with whether it allows or refuses; None: there is none."""
    if not header or not header.strip():
        return None
    said: dict[str, bool] = {}
    for item in header.split(","):
        name, *parameters = (part.strip().lower() for part in item.split(";"))
        refused = any(_ZERO.fullmatch(parameter) for parameter in parameters)
        said[name] = said.get(name, False) or not refused
    return said


def _allows(said: Mapping[str, bool] | None, media_type: str) -> bool:
    if said is None:
        return True
    kind = media_type.partition("/")[0]
    precise = (media_type.lower(), f"{kind}/*", "*/*")
    return next((said[name] for name in precise if name in said), False)


@lru_cache(maxsize=256)
def _kept(header: str | None, media_type: str) -> bool:
    # All clients of a kind send the same ones: 0.1 us instead of 4.
    return _allows(_read(header), media_type)


def default_child(index: bytes, header: str | None) -> str | None:
    """Return the digest of an index's linux/amd64 image if the client accepts such images but no index, else None.

    That is what registries have always done for clients from before multi-arch images.
    """
    if len(index) > LONGEST:
        return None
    # Once: an index may have thousands of children, and a header thousands of ranges.
    said = _read(header)
    try:
        children = json.loads(index)["manifests"]
        for child in children:
            platform = child.get("platform") or {}
            if (platform.get("os"), platform.get("architecture")) == ("linux", "amd64") and _allows(
                said, child["mediaType"]
            ):
                return str(child["digest"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return None
