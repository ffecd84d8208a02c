"""Content negotiation for manifests: whether a client that asks by tag can use what the tag points to. Pure."""

import json

INDEX_TYPES = frozenset(
    {"application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"}
)
IMAGE_TYPES = frozenset(
    {"application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"}
)


def accepts(header: str | None, media_type: str) -> bool:
    """Tell whether an Accept header (RFC 9110, 12.5.1) allows a media type. No header allows everything."""
    if not header or not header.strip():
        return True
    kind = media_type.partition("/")[0]
    for item in header.split(","):
        name, *parameters = (part.strip().lower() for part in item.split(";"))
        if name in (media_type.lower(), f"{kind}/*", "*/*"):
            return not any(
                parameter.replace(" ", "") in ("q=0", "q=0.0", "q=0.00", "q=0.000") for parameter in parameters
            )
    return False


def default_child(index: bytes, header: str | None) -> str | None:
    """Return the digest of an index's linux/amd64 image if the client accepts such images but no index, else None.

    That is what registries have always done for clients from before multi-arch images.
    """
    try:
        children = json.loads(index)["manifests"]
        for child in children:
            platform = child.get("platform") or {}
            if (platform.get("os"), platform.get("architecture")) == ("linux", "amd64") and accepts(
                header, child["mediaType"]
            ):
                return str(child["digest"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return None
