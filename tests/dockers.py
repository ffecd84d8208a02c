"""A dockerd of a test's own, and images of any number of layers for it."""

import hashlib
import io
import json
import os
import re
import secrets
import shutil
import subprocess
import tarfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from attrs import frozen

from tests.security.clients import CLIENTS, Bench, bench

MOST_LAYERS = 125
"""dockerd takes no image of more: "max depth exceeded" (moby, layer/layer_store.go, maxLayerDepth)."""

_DOCKER = "docker -H unix://{home}/docker.sock"
_PUSHED = re.compile(r": digest: (sha256:[0-9a-f]{64}) size: \d+")


def why_no_dockerd() -> str:
    """Return why no dockerd can be run here, "" where it can."""
    if shutil.which("docker") is None or shutil.which("dockerd") is None:
        return "no docker or no dockerd (Debian package docker.io)"
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return "dockerd needs root, and we ask by unshare whether it may make namespaces"
    tried = subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True, text=True)
    return f"dockerd may not make namespaces here: {tried.stderr.strip()}" if tried.returncode else ""


needs_dockerd = pytest.mark.skipif(bool(why_no_dockerd()), reason=why_no_dockerd())


@frozen
class Docker:
    """A running dockerd, for registries on loopback addresses that speak plain HTTP."""

    bench: Bench

    async def load(self, folder: Path, layers: int) -> str:
        """Make an image of small layers of random bytes; return its id."""
        file = folder / "image.tar"
        image = _write_image(file, layers)
        await self._run(f"{_DOCKER} load -i {{file}}", file=str(file))
        return image

    async def push(self, image: str, name: str) -> str:
        """Push an image under a name; return the digest of the manifest."""
        said = await self._run(f"{_DOCKER} tag {{image}} {{name}} && {_DOCKER} push {{name}}", image=image, name=name)
        (digest,) = _PUSHED.findall(said)
        return str(digest)

    async def pull(self, name: str) -> None:
        """Pull a name, of which nothing may be left here."""
        await self._run(f"{_DOCKER} image prune -af && {_DOCKER} pull {{name}}", name=name)

    async def _run(self, line: str, **words: str) -> str:
        code, said = await self.bench.run(line, words=words)
        assert code == 0, said
        return said


@asynccontextmanager
async def run_docker() -> AsyncIterator[Docker]:
    """Run a dockerd while the context is open."""
    (client,) = (client for client in CLIENTS if client.name == "docker")
    # Whom it trusts does not matter: nothing speaks TLS.
    words: Mapping[str, str] = {"us": "", "eu": ""}
    async with bench(client, words, {**os.environ, "SSL_CERT_FILE": os.devnull}) as made:
        yield Docker(made)


def _write_image(file: Path, layers: int) -> str:
    """Write an archive for `docker load`; return the image's id."""
    parts = [_layer(f"file-{number}") for number in range(layers)]
    ids = [f"sha256:{hashlib.sha256(part).hexdigest()}" for part in parts]
    made = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": ids}}
    configuration = json.dumps(made).encode()
    image = hashlib.sha256(configuration).hexdigest()
    names = [f"{number}/layer.tar" for number in range(layers)]
    manifest = json.dumps([{"Config": f"{image}.json", "RepoTags": ["antipode:v1"], "Layers": names}]).encode()
    members = {f"{image}.json": configuration, **dict(zip(names, parts, strict=True)), "manifest.json": manifest}
    with tarfile.open(file, "w") as archive:
        for name, data in members.items():
            _add(archive, name, data)
    return image


def _layer(name: str) -> bytes:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        _add(archive, name, secrets.token_bytes(1000))
    return whole.getvalue()


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))
