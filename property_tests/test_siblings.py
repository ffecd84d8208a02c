"""What is looked up along with a blob: what its manifest lists, and nothing that a database would refuse."""

import json

from hypothesis import given
from hypothesis import strategies as st

from node.pull.siblings import blobs_of

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["config", "layers", "digest"]), inner),
)


def test_configuration_and_layers_are_listed() -> None:
    """The configuration first, the layers in their order; an index lists no blobs."""
    image = {"config": {"digest": "sha256:c"}, "layers": [{"digest": "sha256:b"}, {"digest": "sha256:a"}]}
    assert blobs_of(json.dumps(image).encode()) == ("sha256:c", "sha256:b", "sha256:a")
    assert blobs_of(json.dumps({"manifests": [{"digest": "sha256:m"}]}).encode()) == ()


def test_a_manifest_that_takes_long_to_read() -> None:
    """A manifest beyond any image is not looked into, at every pull of a blob again."""
    layers = [{"digest": f"sha256:{number:064x}"} for number in range(10_000)]
    for count, listed in ((500, 500), (10_000, 0)):
        assert len(blobs_of(json.dumps({"layers": layers[:count]}).encode())) == listed


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_whatever_the_bytes_are(body: bytes) -> None:
    """Any bytes have an answer, of strings that may go to the database."""
    assert all("\0" not in digest and digest.encode() for digest in blobs_of(body))
