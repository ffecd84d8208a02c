"""Whatever a client may choose the length of has an end, the same on both edges, and the answer says what was too long."""

import json

from node.names import NAME_MOST
from node.web.lane import HEAD_MOST
from node.web.listener import Address
from tests.cluster import Node, StartCluster
from tests.edge.wire import Client, Reply, connect

MIB = 1 << 20
EDGES = {"lane": "", "hypercorn": "Content-Length: 0\r\n"}
"""What makes a request the one's or the other's: the lane takes no request that mentions a body."""


async def _pull(client: Client, target: str, edge: str) -> tuple[int, str]:
    return _told(await client.ask(target, headers=EDGES[edge]))


def _told(reply: Reply) -> tuple[int, str]:
    return reply.status, str(json.loads(reply.body)["errors"][0]["code"])


def _name(length: int) -> str:
    """Return a repository's name of so many characters, in components as long as an account's may be."""
    return ("a" * 127 + "/" + "b" * (length - 128))[:length]


async def _check_pulls(node: Node, edge: str) -> None:
    async with connect(Address("127.0.0.1", node.port)) as client:
        longest, beyond = _name(NAME_MOST), _name(NAME_MOST + 1)
        assert await _pull(client, f"/v2/{longest}/manifests/v1", edge) == (404, "NAME_UNKNOWN")
        for name in (beyond, _name(HEAD_MOST // 2)):
            assert await _pull(client, f"/v2/{name}/manifests/v1", edge) == (400, "NAME_INVALID")
            assert await _pull(client, f"/v2/{name}/blobs/sha256:{0:064x}", edge) == (400, "NAME_INVALID")
            assert await _pull(client, f"/v2/{name}/tags/list", edge) == (400, "NAME_INVALID")
        assert await _pull(client, f"/v2/a/b/manifests/{'t' * 128}", edge) == (404, "NAME_UNKNOWN")
        assert await _pull(client, f"/v2/a/b/manifests/{'t' * 129}", edge) == (404, "MANIFEST_UNKNOWN")
        assert await _pull(client, f"/v2/a/b/blobs/sha256:{'0' * (HEAD_MOST // 2)}", edge) == (400, "DIGEST_INVALID")
        await client.send(f"GET /v2/ HTTP/1.1\r\nHost: it\r\n{EDGES[edge]}X: {'x' * 8 * HEAD_MOST}\r\n\r\n".encode())
        assert (await client.rest()).split(b" ")[1] == b"431"


async def _check_pushes(node: Node) -> None:
    async with connect(Address("127.0.0.1", node.port)) as client:
        beyond = _name(NAME_MOST + 1)
        assert _told(await client.ask(f"/v2/{beyond}/blobs/uploads/", "POST", body=b"x")) == (400, "NAME_INVALID")
        assert _told(await client.ask(f"/v2/{beyond}/manifests/v1", "PUT", body=b"{}")) == (400, "NAME_INVALID")
    async with connect(Address("127.0.0.1", node.port)) as client:
        manifest = await client.ask("/v2/a/b/manifests/v1", "PUT", body=b" " * (4 * MIB + 1))
        assert _told(manifest) == (413, "SIZE_INVALID")
    async with connect(Address("127.0.0.1", node.port)) as client:
        begun = await client.ask("/v2/a/b/blobs/uploads/", "POST", headers="Content-Length: 0\r\n")
        assert begun.status == 202
        upload = await client.ask(begun.headers["location"], "PATCH", body=bytes(MIB + 1))
        assert _told(upload) == (413, "SIZE_INVALID")


async def test_everything_has_an_end(start_cluster: StartCluster) -> None:
    """Names of 255 characters, tags of 128, heads of 16 KiB, manifests of 4 MiB and blobs of MAXIMUM_LAYER_SIZE; not one more."""
    node = (await start_cluster("us eu", MAXIMUM_LAYER_SIZE="1MiB"))["us"]
    for edge in EDGES:
        await _check_pulls(node, edge)
    await _check_pushes(node)
