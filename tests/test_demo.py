"""The demo does what it says, leaves nothing behind, and pushes an image that is valid."""

import gzip
import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from scripts.demo_parts.image import Image, build_image, content_size
from scripts.services.postgres import _readable, unprivileged_uid
from scripts.services.processes import accepts_connections, free_ports
from tests.busy import measured

ROOT = Path(__file__).parent.parent
SCALE = 4096
_SECONDS = 300.0


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return build_image(tmp_path / "image", lambda _nbytes: None, scale=SCALE)


def _load(image: Image, descriptor: dict[str, Any]) -> bytes:
    """Return the bytes that a descriptor names, having checked digest and size."""
    algorithm, _, encoded = str(descriptor["digest"]).partition(":")
    data = (image.folder / "blobs" / algorithm / encoded).read_bytes()
    assert len(data) == descriptor["size"]
    assert hashlib.sha256(data).hexdigest() == encoded
    return data


def _manifests(image: Image) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return each platform with its manifest, by way of the layout's index.json, as a client would."""
    entry = json.loads((image.folder / "index.json").read_bytes())["manifests"][0]
    index = json.loads(_load(image, entry))
    return [(child["platform"], json.loads(_load(image, child))) for child in index["manifests"]]


def test_image_has_one_manifest_per_platform(image: Image) -> None:
    """The image is for two platforms, and each configuration names the platform that the index promises."""
    platforms = []
    for platform, manifest in _manifests(image):
        config = json.loads(_load(image, manifest["config"]))
        assert {"os": config["os"], "architecture": config["architecture"]} == platform
        platforms.append(platform["architecture"])
    assert platforms == ["amd64", "arm64"]


def test_diff_ids_are_of_the_unpacked_layers(image: Image) -> None:
    """A diff_id is the digest of its layer's tar archive before compression (OCI image-spec, config.md)."""
    for _platform, manifest in _manifests(image):
        config = json.loads(_load(image, manifest["config"]))
        archives = [gzip.decompress(_load(image, layer)) for layer in manifest["layers"]]
        assert len(archives) == 4
        unpacked = [f"sha256:{hashlib.sha256(archive).hexdigest()}" for archive in archives]
        assert config["rootfs"] == {"type": "layers", "diff_ids": unpacked}


def test_layers_unpack_to_their_content(image: Image) -> None:
    """Each layer is a tar archive whose folders come before what lies in them."""
    total = 0
    for _platform, manifest in _manifests(image):
        for layer in manifest["layers"]:
            seen = {"."}
            with tarfile.open(fileobj=io.BytesIO(gzip.decompress(_load(image, layer)))) as tar:
                for entry in tar:
                    assert str(Path(entry.name).parent) in seen
                    seen.add(entry.name)
                    total += entry.size
    shared = _load_sizes(image, 0)
    assert total == content_size(SCALE) + shared  # the base layer was counted for both platforms


def _load_sizes(image: Image, number: int) -> int:
    layer = _manifests(image)[0][1]["layers"][number]
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(_load(image, layer)))) as tar:
        return sum(entry.size for entry in tar)


def test_blobs_are_listed_once(image: Image) -> None:
    """What is to be pushed is every configuration and layer that the manifests name, each once."""
    named = {
        descriptor["digest"]
        for _platform, manifest in _manifests(image)
        for descriptor in (manifest["config"], *manifest["layers"])
    }
    listed = [blob.digest for blob in image.blobs]
    assert sorted(listed) == sorted(named)


def test_image_is_the_same_every_time(image: Image, tmp_path: Path) -> None:
    """The content is deterministic."""
    again = build_image(tmp_path / "again", lambda _nbytes: None, scale=SCALE)
    assert again.index == image.index


class _Demo:
    """A run of the demo, with ports and a $TMPDIR of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.ports = free_ports(2)
        us, eu = map(str, self.ports)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "scripts.demo_parts", *arguments],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(folder), "ANTIPODE_DEMO_US_PORT": us, "ANTIPODE_DEMO_EU_PORT": eu},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said = ""

    def read_until(self, text: str) -> None:
        """Read what it says up to the line with `text`."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line
            if text in line:
                return
        pytest.fail(f"the demo never said {text!r}:\n{self.said}")

    def end(self) -> int:
        """Wait for its end and return the exit code."""
        self.said += self.process.communicate(timeout=_SECONDS)[0]
        return self.process.returncode

    def descendants(self) -> dict[int, str]:
        """Return the command lines of its child processes."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return {int(pid): Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in children}

    def left_behind(self) -> list[str]:
        """Return what still listens, and what still lies in its $TMPDIR."""
        listening = [f"port {port}" for port in self.ports if accepts_connections(port)]
        return listening + [str(place.relative_to(self.folder)) for place in self.folder.rglob("*") if place.is_file()]


@contextmanager
def _demo(folder: Path, *arguments: str) -> Iterator[_Demo]:
    demo = _Demo(folder, *arguments)
    try:
        yield demo
    finally:
        if demo.process.poll() is None:
            demo.process.kill()
        demo.process.communicate()


def test_demo_once_shows_everything_and_exits(tmp_path: Path) -> None:
    """`scripts/demo --once` pushes in one region, pulls in the other, loses a store, exits with 0 within a minute."""
    began = time.monotonic()
    with measured() as slow, _demo(tmp_path, "--once") as demo:
        assert demo.end() == 0, demo.said
        assert time.monotonic() - began < 60 * mean(slow)
        for line in (
            "blobs were served from the source store, us",
            "all 9 replicas have arrived",
            "/health/endtoend says 503",
            "local folders may be stores here only because everything is one machine",
        ):
            assert line in demo.said
        assert demo.said.count("every byte compared: the same") == 6
        assert demo.left_behind() == []


def test_demo_stops_everything_on_sigterm(tmp_path: Path) -> None:
    """A signal in the middle of the story stops every process and removes the folder."""
    with _demo(tmp_path, "--once") as demo:
        demo.read_until("Push it into us")
        pids = demo.descendants()
        assert len(pids) == 4
        demo.process.send_signal(signal.SIGTERM)
        assert demo.end() == 128 + signal.SIGTERM
        assert demo.left_behind() == []
        assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_demo_says_what_failed_and_keeps_the_logs(tmp_path: Path) -> None:
    """When a node dies the demo exits with 1, names it, stops the rest, and says where the logs are."""
    with _demo(tmp_path, "--once") as demo:
        demo.read_until("Build an image")
        (node,) = [pid for pid, command in demo.descendants().items() if f"127.0.0.1:{demo.ports[1]}" in command]
        os.kill(node, signal.SIGKILL)
        assert demo.end() == 1
        assert "the eu node ended with exit code -9" in demo.said
        (logs,) = tmp_path.glob("antipode-demo-*/logs")
        assert str(logs) in demo.said
        assert {log.name for log in logs.iterdir()} >= {"node-us.log", "node-eu.log", "postgres.log", "redis.log"}
        assert not [what for what in demo.left_behind() if what.startswith("port")]


def test_demo_names_a_taken_port(tmp_path: Path) -> None:
    """A port that is taken is named before anything is started, with the way to choose another."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = str(other.getsockname()[1])
        with _demo(tmp_path, "--once", "--eu-port", taken) as demo:
            assert demo.end() == 1
            assert f"port {taken} of 127.0.0.1, for the eu node, cannot be had" in demo.said
            assert "--eu-port" in demo.said
            assert demo.left_behind() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to run PostgreSQL as somebody else")
@pytest.mark.parametrize("port", ["99999", "0", "x", "-1"])
def test_demo_refuses_what_is_no_port(port: str) -> None:
    """As any option that cannot be used: one line and exit code 2, and nothing is started."""
    words = [sys.executable, "-m", "scripts.demo_parts", f"--us-port={port}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.endswith(f"argument --us-port: found '{port}'; write a port, 1 to 65535\n")


def test_wheel_in_a_closed_folder_is_copied_with_its_libraries(tmp_path: Path) -> None:
    """Where the other user cannot enter the folder of a wheel, its programs and their libraries keep their places to each other."""
    closed = tmp_path / "site-packages"
    programs, libraries = closed / "wheel" / "pginstall" / "bin", closed / "wheel.libs"
    for folder, name in ((programs, "postgres"), (libraries, "libpq.so")):
        folder.mkdir(parents=True)
        (folder / name).write_text(name)
    closed.chmod(0o700)
    uid = unprivileged_uid()
    assert uid is not None
    copy = _readable(programs, tmp_path, uid)
    assert copy != programs
    assert (copy / "postgres").read_text() == "postgres"
    library = (
        copy / "../../../wheel.libs/libpq.so"
    )  # as the run path of the wheel's programs says, from their own folder
    assert library.read_text() == "libpq.so"
    assert library.stat().st_uid == uid
