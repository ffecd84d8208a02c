"""The last reader tries again as clients do, and tells what is lost from what failed once."""

from functools import partial
from pathlib import Path

import trio

from tests.cluster import Node
from tests.nemesis.checker import lost
from tests.nemesis.history import Operation
from tests.nemesis.images import Image, make_image
from tests.nemesis.trial import Pulled, pull_all


class Registry:
    """Serves one image; the first request of every path, or all of one, fails."""

    def __init__(self, image: Image) -> None:
        base = f"/v2/{image.repository}"
        self.held = {f"{base}/blobs/{digest}": data for digest, data in image.blobs.items()}
        self.held[f"{base}/manifests/{image.digest}"] = image.manifest
        self.image = image
        self.asked: list[str] = []
        self.always = ""

    async def serve(self, stream: trio.SocketStream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += await stream.receive_some(4096)
        path = head.split()[1].decode()
        fails = path == self.always or path not in self.asked
        self.asked.append(path)
        status, body = (b"503 Busy", b"a hiccup") if fails else (b"200 OK", self.held[path])
        about = f"docker-content-digest: {self.image.digest}\r\ncontent-length: {len(body)}\r\nconnection: close"
        await stream.send_all(b"HTTP/1.1 " + status + b"\r\n" + about.encode() + b"\r\n\r\n" + body)


async def read(registry: Registry, node: Node, nursery: trio.Nursery) -> list[str]:
    """Let the last reader read; return what is lost of one push that was acknowledged."""
    listener = (await nursery.start(partial(trio.serve_tcp, registry.serve, 0, host="127.0.0.1")))[0]
    node.url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
    image, pulled = registry.image, Pulled()
    push = Operation("push", "writer", "streams", image.repository, "tag", 0, 1, image.digest, ended=1, ok=True)
    await pull_all(pulled, node, [(image.repository, image.digest)])
    # One that can be read, or it would be said that nothing can.
    other = Operation("pull", "last-reader", node.name, "other", None, 0, 1, "sha256:other", ended=1, ok=True)
    return lost([push], [*pulled.operations, other])


async def test_a_hiccup_is_no_loss(nursery: trio.Nursery, tmp_path: Path) -> None:
    """What fails once is asked for again."""
    registry = Registry(make_image("a/b", 1, [1000]))
    assert await read(registry, Node("us", "us", tmp_path / "config.yaml", 0), nursery) == []


async def test_what_is_lost_stays_lost(nursery: trio.Nursery, tmp_path: Path) -> None:
    """What fails every time is a loss."""
    registry = Registry(make_image("a/b", 1, [1000]))
    registry.always = next(reversed(registry.held))
    found = await read(registry, Node("us", "us", tmp_path / "config.yaml", 0), nursery)
    assert "acknowledged and cannot be pulled" in found[0]
