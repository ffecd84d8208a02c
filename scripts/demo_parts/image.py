"""A multi-layer, multi-platform OCI image of some tens of MB, made without a network, as an OCI image layout.

The same content every time: files are of SHAKE-256 output (which does not compress, as most of a real image does not) and of
text (which does). It holds data, not programs. Source: OCI image-spec 1.1 (image-layout, image-index, manifest, config).
"""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

from attrs import frozen

MIB = 1 << 20
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
ARCHITECTURES = ("amd64", "arm64")
_CREATED = "2026-01-01T00:00:00Z"
_CREATED_SECONDS = 1767225600
_FILE_SIZE = 2 * MIB

Progress = Callable[[int], None]
"""Called with the number of uncompressed bytes that are done since the last call."""


@frozen
class Blob:
    """A blob of the image: a layer or a configuration, as a file."""

    title: str
    digest: str
    """`sha256:hex`."""
    size: int
    """Bytes."""
    path: Path


@frozen
class Manifest:
    """A manifest or the index, as bytes."""

    media_type: str
    digest: str
    data: bytes


@frozen
class Image:
    """An image: `index` names `manifests`, one per platform, and these name `blobs`, each listed once."""

    folder: Path
    """The OCI image layout."""
    index: Manifest
    manifests: tuple[Manifest, ...]
    blobs: tuple[Blob, ...]

    @property
    def size(self) -> int:
        """Return the bytes of all blobs."""
        return sum(blob.size for blob in self.blobs)


@frozen
class _Layer:
    title: str
    files: Mapping[str, bytes]


@frozen
class _BuiltLayer:
    blob: Blob
    diff_id: str
    """Digest of the uncompressed tar archive."""


def build_image(folder: Path, progress: Progress, *, scale: int = MIB) -> Image:
    """Write the image layout into the new folder `folder` and return what it holds.

    `scale` is the bytes that stand for one MiB of content: a test makes a small image with a small one. An exception of
    `progress` ends the work.
    """
    store = folder / "blobs" / "sha256"
    store.mkdir(parents=True)
    base = _build_layer(store, _base_layer(scale), progress)
    blobs, manifests = [base.blob], []
    for architecture in ARCHITECTURES:
        layers = [base, *(_build_layer(store, layer, progress) for layer in _own_layers(architecture, scale))]
        config = _write(store, f"configuration {architecture}", _config(architecture, layers))
        blobs += [*(layer.blob for layer in layers[1:]), config]
        manifests.append(_manifest(store, config, [layer.blob for layer in layers]))
    index = _index(store, manifests)
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (folder / "index.json").write_bytes(
        _json({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [_descriptor(index)]})
    )
    return Image(folder, index, tuple(manifests), tuple(blobs))


def content_size(scale: int = MIB) -> int:
    """Return the bytes of all files that `build_image` packs; with their headers `progress` adds up to a little more."""
    layers = [_base_layer(scale), *(layer for arch in ARCHITECTURES for layer in _own_layers(arch, scale))]
    return sum(len(data) for layer in layers for data in layer.files.values())


def _base_layer(scale: int) -> _Layer:
    release = b'NAME="Antipode demo"\nID=antipode-demo\nVERSION_ID=1\n'
    return _Layer("base, both platforms", {"etc/os-release": release, **_noise("usr/share/base", "base", 12 * scale)})


def _own_layers(architecture: str, scale: int) -> list[_Layer]:
    greeting = f"This layer is for {architecture}.\n".encode()
    return [
        _Layer(f"libraries {architecture}", _noise(f"usr/lib/{architecture}", architecture, 8 * scale)),
        _Layer(
            f"application {architecture}",
            {
                **_noise("srv/application", f"application {architecture}", 3 * scale),
                "srv/application/words.txt": greeting * (scale // len(greeting)),
            },
        ),
        _Layer(f"settings {architecture}", {"etc/antipode-demo.conf": greeting}),
    ]


def _noise(folder: str, seed: str, size: int) -> dict[str, bytes]:
    data = hashlib.shake_256(seed.encode()).digest(size)
    starts = range(0, size, _FILE_SIZE)
    return {f"{folder}/{number:02}.bin": data[start : start + _FILE_SIZE] for number, start in enumerate(starts)}


def _build_layer(store: Path, layer: _Layer, progress: Progress) -> _BuiltLayer:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for folder in _folders(layer.files):
            entry = _entry(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for name, data in layer.files.items():
            entry = _entry(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    plain = archive.getvalue()
    # A step at a time, so that the bar moves; no time stamp, so that the bytes are the same every time.
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", fileobj=packed, mode="wb", compresslevel=1, mtime=0) as stream:
        for start in range(0, len(plain), MIB):
            stream.write(plain[start : start + MIB])
            progress(len(plain[start : start + MIB]))
    return _BuiltLayer(_write(store, layer.title, packed.getvalue()), _digest(plain))


def _folders(names: Mapping[str, bytes]) -> list[str]:
    return sorted({str(parent) for name in names for parent in Path(name).parents if str(parent) != "."})


def _entry(name: str) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.mtime, entry.mode = _CREATED_SECONDS, 0o644
    entry.uname = entry.gname = "root"
    return entry


def _config(architecture: str, layers: list[_BuiltLayer]) -> bytes:
    return _json(
        {
            "created": _CREATED,
            "architecture": architecture,
            "os": "linux",
            "config": {"WorkingDir": "/srv/application"},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
            "history": [{"created": _CREATED, "created_by": f"antipode demo: {layer.blob.title}"} for layer in layers],
        }
    )


def _manifest(store: Path, config: Blob, layers: list[Blob]) -> Manifest:
    data = _json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": CONFIG_TYPE, "digest": config.digest, "size": config.size},
            "layers": [{"mediaType": LAYER_TYPE, "digest": layer.digest, "size": layer.size} for layer in layers],
        }
    )
    return Manifest(MANIFEST_TYPE, _write(store, "manifest", data).digest, data)


def _index(store: Path, manifests: list[Manifest]) -> Manifest:
    platforms = [{"os": "linux", "architecture": architecture} for architecture in ARCHITECTURES]
    children = [
        {**_descriptor(manifest), "platform": platform} for manifest, platform in zip(manifests, platforms, strict=True)
    ]
    data = _json({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": children})
    return Manifest(INDEX_TYPE, _write(store, "index", data).digest, data)


def _descriptor(manifest: Manifest) -> dict[str, object]:
    return {"mediaType": manifest.media_type, "digest": manifest.digest, "size": len(manifest.data)}


def _write(store: Path, title: str, data: bytes) -> Blob:
    digest = _digest(data)
    path = store / digest.removeprefix("sha256:")
    path.write_bytes(data)
    return Blob(title, digest, len(data), path)


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _json(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
