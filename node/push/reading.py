"""What a manifest's bytes say, checked as far as the registry depends on it. Pure.

Source: OCI image-spec (manifest, index, descriptor), Docker image manifest v2 schema 2.
"""

import json
import re
from collections.abc import Mapping, Sequence
from math import isfinite

from node.errors import MANIFEST_INVALID, RegistryError
from node.records.manifests import ManifestFacts
from replication.digests import BadDigest, Digest

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
OCI_ARTIFACT = "application/vnd.oci.artifact.manifest.v1+json"

_INDEXES = frozenset({OCI_INDEX, DOCKER_LIST})
KNOWN = frozenset({OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST, OCI_ARTIFACT})

_FOREIGN = re.compile(r"application/vnd\.(docker\.image\.rootfs\.foreign\.diff|oci\.image\.layer\.nondistributable)\.")
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}")
_MOST_DESCRIPTORS = 10_000
_MOST_NESTED = 200_000
"""Lists and objects: more than the most descriptors have. Four megabytes of empty ones take seconds to read, and nobody else's
turn comes meanwhile."""

Json = Mapping[str, object]


def read_manifest(body: bytes, content_type: str | None, digest: str) -> ManifestFacts:
    """Return what a manifest refers to. Raises RegistryError (MANIFEST_INVALID) that names the field and what would be right."""
    document = _parse(body)
    media_type = _media_type(document, content_type)
    children: tuple[str, ...] = ()
    blobs: tuple[str, ...] = ()
    if media_type in _INDEXES:
        children, blobs = _children(document)
    else:
        blobs = tuple(_blobs(document, media_type))
    subject = document.get("subject")
    return ManifestFacts(
        digest=digest,
        media_type=media_type,
        body=body,
        blobs=blobs,
        children=children,
        subject=None if subject is None else _digest(_object(subject, "subject"), "subject"),
        artifact_type=_artifact_type(document, media_type),
        annotations=_annotations(document),
    )


def _invalid(field: str, found: object, right: str) -> RegistryError:
    # JSON has no infinite numbers, in answers either; Python's reads and writes them.
    known = found is None or isinstance(found, int) or (isinstance(found, float) and isfinite(found))
    shown = found if known else str(found)[:160]
    return RegistryError(MANIFEST_INVALID, {"field": field, "found": shown, "reason": right})


def _no_constant(name: str) -> object:
    raise _invalid("body", name, "a manifest is JSON, which has no such number")


def _parse(body: bytes) -> Json:
    # Those in texts count, too, which is as good: to see only this takes no time.
    if (nested := body.count(b"[") + body.count(b"{")) > _MOST_NESTED:
        raise _invalid("body", nested, f"at most {_MOST_NESTED} lists and objects")
    try:
        document = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise _invalid("body", f"byte {error.start}", "a manifest is JSON in UTF-8") from None
    except json.JSONDecodeError as error:
        raise _invalid("body", f"{error.msg} at byte {error.pos}", "a manifest is JSON") from None
    except (RecursionError, ValueError) as error:
        raise _invalid("body", type(error).__name__, "JSON that is nested less deeply, with shorter numbers") from None
    return _object(document, "body")


def _media_type(document: Json, content_type: str | None) -> str:
    """Return the type under which the manifest is stored: the Content-Type, which the body must not contradict."""
    inside = document.get("mediaType")
    if inside is not None and not isinstance(inside, str):
        raise _invalid("mediaType", inside, "a media type")
    named = content_type.partition(";")[0].strip().lower() if content_type else ""
    if not named or named in ("application/json", "application/octet-stream"):
        named = inside or (OCI_INDEX if "manifests" in document else OCI_MANIFEST)
    if named not in KNOWN:
        raise _invalid("Content-Type", named, f"one of {', '.join(sorted(KNOWN))}")
    if inside is not None and inside != named:
        raise _invalid("mediaType", inside, f"the same as the Content-Type, {named}")
    version = document.get("schemaVersion")
    if named != OCI_ARTIFACT and version != 2:
        raise _invalid("schemaVersion", version, "2")
    # A body that means one thing to one client and another to the next was an attack once (CVE-2021-41190).
    foreign = ("layers", "config") if named in _INDEXES else ("manifests",)
    for name in foreign:
        if name in document:
            raise _invalid(name, "present", f"absent in {named}")
    return named


def _children(document: Json) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return an index's manifests, and what else it names: build caches keep their layers in an index, as blobs."""
    manifests, blobs = [], []
    for n, item in enumerate(_descriptors(document, "manifests")):
        digest = _digest(item, f"manifests[{n}]")
        if item["mediaType"] in KNOWN:
            manifests.append(digest)
        elif not _FOREIGN.match(str(item["mediaType"])):
            blobs.append(digest)
    return tuple(manifests), tuple(blobs)


def _blobs(document: Json, media_type: str) -> Sequence[str]:
    found = []
    if media_type == OCI_ARTIFACT:
        return [_digest(item, f"blobs[{n}]") for n, item in enumerate(_descriptors(document, "blobs"))]
    config = document.get("config")
    if config is None:
        raise _invalid("config", None, "a descriptor")
    found.append(_digest(_object(config, "config"), "config"))
    for n, layer in enumerate(_descriptors(document, "layers")):
        digest = _digest(layer, f"layers[{n}]")
        if not _FOREIGN.match(str(layer["mediaType"])):
            found.append(digest)
    return found


def _descriptors(document: Json, name: str) -> Sequence[Json]:
    items = document.get(name)
    if items is None:
        return []
    if not isinstance(items, list):
        raise _invalid(name, type(items).__name__, "a list of descriptors")
    if len(items) > _MOST_DESCRIPTORS:
        raise _invalid(name, len(items), f"at most {_MOST_DESCRIPTORS} descriptors")
    return [_object(item, f"{name}[{n}]") for n, item in enumerate(items)]


def _object(value: object, field: str) -> Json:
    if not isinstance(value, dict):
        raise _invalid(field, type(value).__name__, "a JSON object")
    return value


def _digest(descriptor: Json, field: str) -> str:
    """Check a descriptor and return its digest."""
    size = descriptor.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise _invalid(f"{field}.size", size, "a number of bytes")
    media_type = descriptor.get("mediaType")
    if not isinstance(media_type, str) or not _MEDIA_TYPE.fullmatch(media_type):
        raise _invalid(f"{field}.mediaType", media_type, "a media type")
    try:
        return str(Digest.parse(str(descriptor.get("digest"))))
    except BadDigest as error:
        raise _invalid(f"{field}.digest", descriptor.get("digest"), str(error)) from None


def _artifact_type(document: Json, media_type: str) -> str | None:
    """Return what a referrers list says of this manifest: artifactType, for an image else its config's type (spec: end-12)."""
    named = document.get("artifactType")
    if named in (None, "") and media_type not in _INDEXES and media_type != OCI_ARTIFACT:
        named = _object(document.get("config"), "config").get("mediaType")
    if named in (None, ""):
        return None
    if not isinstance(named, str) or not _MEDIA_TYPE.fullmatch(named):
        raise _invalid("artifactType", named, "a media type")
    return named


def _annotations(document: Json) -> Mapping[str, str] | None:
    annotations = document.get("annotations")
    if annotations is None:
        return None
    for key, value in _object(annotations, "annotations").items():
        if not isinstance(value, str):
            raise _invalid(f"annotations.{key[:80]}", value, "a string")
    return _object(annotations, "annotations")  # type: ignore[return-value]  # every value was checked just now
