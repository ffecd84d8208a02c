"""skopeo and podman, as they are installed, pushing and pulling through the balancer while something fails."""

import gzip
import io
import json
import random
import shutil
import tarfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import trio
from attrs import define, field, frozen

from tests.nemesis.faults import Fault
from tests.nemesis.ground import Ground
from tests.nemesis.images import MIB, digest_of

_LAYERS = 3
_PATIENCE = 120.0
"""Seconds that a command may take."""


@frozen
class Command:
    """One command that has ended. Seconds from the fault to its beginning, negative before it, and how long it took."""

    words: str
    after: float
    seconds: float
    code: int
    said: str


@define
class Commands:
    """The commands of one fault."""

    fault: str
    ended: list[Command] = field(factory=list)

    @property
    def failed(self) -> list[Command]:
        return [command for command in self.ended if command.code != 0]


def make_layout(folder: Path, number: int) -> None:
    """Write an OCI image layout that podman can unpack: layers of some megabytes, gzip over tar."""
    source, blobs = random.Random(number), folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(media_type: str, data: bytes) -> dict[str, object]:
        digest = digest_of(data)
        (blobs / digest.partition(":")[2]).write_bytes(data)
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    layers, plain = [], []
    for place in range(_LAYERS):
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w") as tar:
            info = tarfile.TarInfo(f"data-{place}")
            info.size = 2 * MIB + place * 3 * MIB
            tar.addfile(info, io.BytesIO(source.randbytes(info.size)))
        plain.append(digest_of(raw.getvalue()))
        layers.append(put("application/vnd.oci.image.layer.v1.tar+gzip", gzip.compress(raw.getvalue(), 1, mtime=0)))
    facts = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": plain}, "config": {}}
    config = put("application/vnd.oci.image.config.v1+json", json.dumps(facts).encode())
    kind = "application/vnd.oci.image.manifest.v1+json"
    manifest = put(
        kind, json.dumps({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers}).encode()
    )
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    manifest["annotations"] = {"org.opencontainers.image.ref.name": "it"}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))


async def run_commands(ground: Ground, fault: Fault, seconds: float, folder: Path, clients: Sequence[str]) -> Commands:
    """Push and pull over and over with each client while a fault lasts, and for as long again; return every command."""
    commands, stop = Commands(fault.name), trio.Event()
    started = trio.current_time()
    began = [started]
    async with trio.open_nursery() as nursery:
        for client in clients:
            for door in ground.doors:
                loop = _skopeo if client == "skopeo" else _podman
                home = folder / f"{client}-{door}"
                await trio.to_thread.run_sync(partial(home.mkdir, parents=True))
                nursery.start_soon(loop, commands, ground.doors[door], home, began, stop)
        await trio.sleep(3)
        began[0] = trio.current_time()
        async with fault.make(ground):
            await trio.sleep(seconds)
        await trio.sleep(seconds)
        stop.set()
    return commands


async def _skopeo(commands: Commands, url: str, home: Path, began: list[float], stop: trio.Event) -> None:
    registry, number = url.partition("//")[2], 0
    while not stop.is_set():
        number += 1
        layout, back = home / f"layout-{number}", home / f"back-{number}"
        await trio.to_thread.run_sync(make_layout, layout, random.randrange(10**9))
        name = f"docker://{registry}/skopeo-{home.name}/image:{number}"
        pushed = await _run(
            commands, began, ["skopeo", "copy", "--dest-tls-verify=false", "-q", f"oci:{layout}:it", name]
        )
        if pushed:
            await _run(commands, began, ["skopeo", "copy", "--src-tls-verify=false", "-q", name, f"dir:{back}"])
        for place in (layout, back):
            await trio.to_thread.run_sync(partial(shutil.rmtree, place, ignore_errors=True))


async def _podman(commands: Commands, url: str, home: Path, began: list[float], stop: trio.Event) -> None:
    registry, number = url.partition("//")[2], 0
    podman = ["podman", "--root", str(home / "root"), "--runroot", str(home / "run"), "--storage-driver", "vfs"]
    while not stop.is_set():
        number += 1
        layout = home / f"layout-{number}"
        await trio.to_thread.run_sync(make_layout, layout, random.randrange(10**9))
        name = f"{registry}/podman-{home.name}/image:{number}"
        archive = f"oci:{layout}:it"
        # What it has pushed it would not pull: so one stays out of its storage.
        pushed = await _run(
            commands, began, ["skopeo", "copy", "--dest-tls-verify=false", "-q", archive, f"docker://{name}"]
        )
        if pushed:
            await _run(commands, began, [*podman, "pull", "--tls-verify=false", "-q", name])
            await _run(commands, began, [*podman, "push", "--tls-verify=false", "-q", name, f"{name}-again"])
            await _run(commands, began, [*podman, "rmi", "-f", name])
        await trio.to_thread.run_sync(partial(shutil.rmtree, layout, ignore_errors=True))


async def _run(commands: Commands, began: list[float], words: list[str]) -> bool:
    start = trio.current_time()
    done = None
    with trio.move_on_after(_PATIENCE):
        done = await trio.run_process(words, capture_stdout=True, capture_stderr=True, check=False)
    code = -1 if done is None else done.returncode
    said = f"no end within {_PATIENCE} s" if done is None else done.stderr.decode(errors="replace").strip()[-600:]
    verb = " ".join(word for word in words if not word.startswith("-"))
    commands.ended.append(Command(verb, start - began[0], trio.current_time() - start, code, said))
    return code == 0
