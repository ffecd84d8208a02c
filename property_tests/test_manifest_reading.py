"""Reading a manifest: whatever a client sends, it is understood or refused in the specification's words."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from node.errors import RegistryError
from node.push.reading import DOCKER_LIST, DOCKER_MANIFEST, KNOWN, OCI_INDEX, OCI_MANIFEST, read_manifest

DIGEST = "sha256:" + "0" * 64
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=12,
)
NAMES = (
    *("schemaVersion", "mediaType", "config", "layers", "manifests", "subject", "artifactType", "annotations", "blobs"),
    *("digest", "size", "platform", "urls"),
)
DESCRIPTORS = st.fixed_dictionaries(
    {},
    optional={
        "mediaType": st.one_of(st.sampled_from(sorted(KNOWN)), JSON),
        "size": st.one_of(st.integers(0, 100), JSON),
        "digest": st.one_of(st.just("sha256:" + "a" * 64), JSON),
    },
)
DOCUMENTS = st.dictionaries(
    st.sampled_from(NAMES), st.one_of(JSON, DESCRIPTORS, st.lists(DESCRIPTORS, max_size=3), st.just(2)), max_size=8
)
CONTENT_TYPES = st.one_of(st.none(), st.sampled_from([*sorted(KNOWN), "application/json", ""]), st.text(max_size=20))


def refused_properly(body: bytes, content_type: str | None) -> None:
    try:
        facts = read_manifest(body, content_type, DIGEST)
    except RegistryError as error:
        refused = error
    else:
        assert facts.media_type in KNOWN
        # What goes into the database is text that it can take.
        json.dumps(dict(facts.annotations or {}))
        for text in (*facts.blobs, *facts.children, facts.subject or "", facts.artifact_type or ""):
            text.encode()
        return
    assert refused.code.name == "MANIFEST_INVALID"
    answer = refused.answer("id").body
    assert isinstance(answer, bytes)
    assert json.loads(answer)["errors"][0]["detail"]["reason"]


@given(st.one_of(st.binary(max_size=200), st.text(max_size=50).map(str.encode)), CONTENT_TYPES)
@example(b"\xff", None)
@example(b"[" * 100_000, None)
@example(b'{"schemaVersion": ' + b"9" * 10_000 + b"}", None)
@example(b'{"schemaVersion": NaN}', None)
def test_arbitrary_bytes(body: bytes, content_type: str | None) -> None:
    """No bytes make reading fail in another way than MANIFEST_INVALID."""
    refused_properly(body, content_type)


@given(st.one_of(JSON, DOCUMENTS), CONTENT_TYPES)
def test_arbitrary_json(document: Any, content_type: str | None) -> None:
    """No JSON makes reading fail in another way than MANIFEST_INVALID."""
    refused_properly(json.dumps(document).encode(), content_type)


@pytest.mark.parametrize("depth", [*range(100, 1000, 100), *range(900, 1000, 3)])
def test_deep_json(depth: int) -> None:
    """Where nesting comes near the interpreter's limit a manifest is still refused properly."""
    for field in ("mediaType", "subject", "schemaVersion"):
        refused_properly(b'{"%s": %s1%s}' % (field.encode(), b"[" * depth, b"]" * depth), None)


HEX = st.text("0123456789abcdef", min_size=64, max_size=64).map("sha256:{}".format)


@given(st.lists(HEX, max_size=4), HEX, st.sampled_from([OCI_MANIFEST, DOCKER_MANIFEST]), st.one_of(st.none(), HEX))
def test_an_image_names_its_blobs(layers: list[str], config: str, media_type: str, subject: str | None) -> None:
    """An image refers to its config, its layers and its subject; foreign layers are nobody's business."""
    kinds = ["application/vnd.oci.image.layer.v1.tar", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"]
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 2},
        "layers": [{"mediaType": kinds[n % 2], "digest": digest, "size": n} for n, digest in enumerate(layers)],
    }
    if subject is not None:
        document["subject"] = {"mediaType": OCI_MANIFEST, "digest": subject, "size": 3}
    facts = read_manifest(json.dumps(document).encode(), media_type, DIGEST)
    assert facts.blobs == (config, *layers[::2])
    assert (facts.subject, facts.media_type, facts.children) == (subject, media_type, ())
    assert facts.artifact_type == "application/vnd.oci.image.config.v1+json"


@given(
    st.lists(st.tuples(HEX, st.sampled_from([OCI_MANIFEST, "application/vnd.oci.image.layer.v1.tar+gzip"])), max_size=5)
)
def test_an_index_names_its_children(children: list[tuple[str, str]]) -> None:
    """An index refers to its manifests; what is no manifest's type in it (build caches do that) is a blob."""
    items = [{"mediaType": kind, "digest": digest, "size": 1} for digest, kind in children]
    for media_type in (OCI_INDEX, DOCKER_LIST):
        body = json.dumps({"schemaVersion": 2, "mediaType": media_type, "manifests": items}).encode()
        facts = read_manifest(body, media_type, DIGEST)
        assert facts.children == tuple(digest for digest, kind in children if kind == OCI_MANIFEST)
        assert facts.blobs == tuple(digest for digest, kind in children if kind != OCI_MANIFEST)
