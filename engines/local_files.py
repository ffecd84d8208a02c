"""What the local engine does on disk: blocking functions for worker threads, durable when they return.

    ROOT/some/key              an object
    ROOT/.antipode/temporary/  objects being written, renamed into place when they are whole and on disk
    ROOT/.antipode/uploads/ID/ an open multi-part write: `key` (its key), `data` (the parts' bytes, in the order of their
                               arrival) and one record per part, `NUMBER`, saying where in `data` it lies

Parts that arrived in order are the object already: finishing renames `data`. Only parts that came out of order, were replaced
or lost a race are copied together, by the kernel.
"""

import fcntl
import os
import secrets
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from attrs import define, field, frozen

from .contract import (
    EngineRefused,
    EngineUnavailable,
    KeyPage,
    ObjectFacts,
    ObjectMissing,
    OpenParts,
    Part,
    PartsMissing,
)

OWN = ".antipode"
_NAME_LIMIT = 255


@frozen
class _Extent:
    """A part's record: where in `data` its bytes lie."""

    part: Part
    offset: int


@define(eq=False)
class OpenFile:
    """A file being read by one worker thread at a time; closing it while a thread still reads waits for nobody."""

    _descriptor: int
    size: int
    modified: float
    """POSIX seconds."""
    _lock: threading.Lock = field(factory=threading.Lock)
    _closed: bool = False

    def read(self, offset: int, most: int) -> bytes:
        """Return up to `most` bytes from `offset`, fewer at the end of the file."""
        with self._lock:
            pieces = []
            while most and (piece := os.pread(self._descriptor, most, offset)):
                pieces.append(piece)
                offset, most = offset + len(piece), most - len(piece)
        self._close_if_due()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill a buffer from `offset` on; return how many bytes there were, fewer at the end of the file."""
        with self._lock:
            filled = 0
            while filled < len(buffer) and (got := os.preadv(self._descriptor, [buffer[filled:]], offset + filled)):
                filled += got
        self._close_if_due()
        return filled

    def close(self) -> None:
        """Close the file, or have the thread that is reading close it when it is done. Never blocks."""
        self._closed = True
        self._close_if_due()

    def _close_if_due(self) -> None:
        # A descriptor closed under a reader's hands may be given to another file, which would then be read.
        if self._closed and self._lock.acquire(blocking=False):
            try:
                if self._descriptor >= 0:
                    os.close(self._descriptor)
                self._descriptor = -1
            finally:
                self._lock.release()


@frozen
class Files:
    """The files below one folder. Paths are made from keys here and nowhere else."""

    root: Path

    def prepare(self) -> None:
        """Make the folders. Raises OSError."""
        for name in ("temporary", "uploads"):
            _make_folders(self.root / OWN / name)

    def path(self, key: str) -> Path:
        """Return where an object lies. Raises EngineRefused for a key that would lead out of the root, or into our folder."""
        words = key.split("/")
        odd = any(word in ("", ".", "..") or len(os.fsencode(word)) > _NAME_LIMIT for word in words)
        if odd or "\0" in key or words[0] == OWN:
            raise EngineRefused(f"{key!r} cannot be a file's path below the storage folder")
        return self.root.joinpath(*words)

    def head(self, key: str) -> ObjectFacts:
        """Return the size. Raises ObjectMissing."""
        file = self.open(key)
        file.close()
        return ObjectFacts(file.size, modified=file.modified)

    def open(self, key: str) -> OpenFile:
        """Open an object for reading. Raises ObjectMissing; EngineRefused where the whole storage folder is gone."""
        path = self.path(key)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError) as error:
            # A disk that isn't mounted must not pass for lost objects.
            self._require_root()
            raise ObjectMissing(f"{key}: no such file") from error
        if path.is_dir():
            os.close(descriptor)
            raise ObjectMissing(f"{key}: no such file, a folder has this name")
        facts = os.fstat(descriptor)
        return OpenFile(descriptor, facts.st_size, facts.st_mtime)

    def read(self, key: str, start: int, length: int) -> bytes:
        """Return up to `length` bytes from `start`. Raises ObjectMissing."""
        file = self.open(key)
        try:
            return file.read(start, length)
        finally:
            file.close()

    def put(self, key: str, data: bytes) -> ObjectFacts:
        """Write an object; it is on disk, under its name, when this returns."""
        target = self.path(key)
        self._require_root()
        temporary = self.root / OWN / "temporary" / secrets.token_hex(16)
        try:
            _write(temporary, data)
            _publish(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        return ObjectFacts(len(data))

    def delete(self, key: str) -> None:
        """Remove an object, for good when this returns; there need not be one."""
        path = self.path(key)
        self._require_root()
        try:
            path.unlink()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return
        _sync_folder(path.parent)

    def begin(self, key: str) -> str:
        """Begin a multi-part write."""
        self.path(key)
        self._require_root()
        upload = secrets.token_hex(16)
        folder = self._upload(upload)
        # Under its final name it has a key, always.
        fresh = folder.with_name(f"new-{upload}")
        fresh.mkdir()
        _write(fresh / "key", key.encode())
        _write(fresh / "data", b"")
        _sync_folder(fresh)
        fresh.rename(folder)
        _sync_folder(folder.parent)
        return upload

    def put_part(self, key: str, upload: str, number: int, data: bytes) -> Part:
        """Write one part. Raises PartsMissing."""
        if number < 1:
            raise EngineRefused(f"{key}: parts are numbered from 1, not {number}")
        folder = self._open_upload(key, upload)
        try:
            offset = _append(folder / "data", data)
            part = Part(number, len(data), secrets.token_hex(8))
            record = folder / f"new-{part.etag}"
            _write(record, f"{offset} {part.size} {part.etag}".encode())
            record.rename(folder / str(number))
            _sync_folder(folder)
        except FileNotFoundError as error:
            raise PartsMissing(f"{key}: multi-part write {upload} ended meanwhile") from error
        return part

    def list_parts(self, key: str, upload: str) -> tuple[Part, ...]:
        """Return the parts by number. Raises PartsMissing."""
        extents = _extents(self._open_upload(key, upload))
        return tuple(extents[number].part for number in sorted(extents))

    def finish(self, key: str, upload: str, parts: Sequence[Part]) -> ObjectFacts:
        """Make the parts the object. Raises PartsMissing."""
        target = self.path(key)
        total = sum(part.size for part in parts)
        try:
            folder = self._open_upload(key, upload)
            self._assemble(folder, target, _chosen(key, _extents(folder), parts), total)
        except (PartsMissing, FileNotFoundError) as error:
            # Finished before, perhaps by a call whose answer was lost. Keys are never used twice.
            if target.is_file() and target.stat().st_size == total:
                self.abandon(key, upload)
                return ObjectFacts(total, found=True)
            if isinstance(error, PartsMissing):
                raise
            raise PartsMissing(f"{key}: multi-part write {upload} ended meanwhile") from error
        self.abandon(key, upload)
        return ObjectFacts(total)

    def abandon(self, key: str, upload: str | None) -> None:
        """Remove a multi-part write, or every open one of this key."""
        for found in self.list_open(key):
            if found.key == key and upload in (None, found.upload):
                folder = self._upload(found.upload)
                # The key's file goes first, in one step: half a folder is no open write.
                (folder / "key").unlink(missing_ok=True)
                shutil.rmtree(folder, ignore_errors=True)

    def list_open(self, prefix: str) -> tuple[OpenParts, ...]:
        """Return the open multi-part writes by key."""
        found = []
        self._require_root()
        for folder in (self.root / OWN / "uploads").iterdir():
            with suppress(FileNotFoundError):
                if not folder.name.startswith("new-") and (key := (folder / "key").read_text()).startswith(prefix):
                    found.append(OpenParts(key, folder.name))
        return tuple(sorted(found, key=lambda one: (one.key, one.upload)))

    def list_keys(self, prefix: str, after: str | None, most: int) -> KeyPage:
        """Return one page of keys in the order of their code points."""
        self._require_root()
        keys: list[str] = []
        for key in self._walk(self.root, "", prefix, after):
            if len(keys) == most:
                return KeyPage(tuple(keys), keys[-1])
            keys.append(key)
        return KeyPage(tuple(keys), None)

    def _walk(self, folder: Path, above: str, prefix: str, after: str | None) -> Iterator[str]:
        # A folder sorts as its name with the slash, which is how its keys go on.
        try:
            entries = [entry.name + "/" * entry.is_dir() for entry in os.scandir(folder)]
        except FileNotFoundError:
            return
        for name in sorted(entries):
            key = above + name
            if name.endswith("/"):
                reaches = key.startswith(prefix) or prefix.startswith(key)
                begun = after is None or key > after or after.startswith(key)
                if reaches and begun and key != f"{OWN}/":
                    yield from self._walk(folder / name, key, prefix, after)
            elif key.startswith(prefix) and (after is None or key > after):
                yield key

    def _assemble(self, folder: Path, target: Path, extents: Sequence[_Extent], total: int) -> None:
        data = folder / "data"
        with data.open("rb") as source:
            # Nobody reserves room in `data` while it turns into the object.
            fcntl.flock(source, fcntl.LOCK_EX)
            ends = [0]
            for extent in extents:
                ends.append(ends[-1] + extent.part.size)
            in_order = all(extent.offset == end for extent, end in zip(extents, ends, strict=False))
            if in_order and os.fstat(source.fileno()).st_size == total:
                _publish(data, target)
                return
            temporary = self.root / OWN / "temporary" / secrets.token_hex(16)
            try:
                with temporary.open("xb") as copy:
                    for extent in extents:
                        _copy(source.fileno(), copy.fileno(), extent.offset, extent.part.size)
                    os.fsync(copy.fileno())
                _publish(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)

    def _upload(self, upload: str) -> Path:
        return self.root / OWN / "uploads" / upload

    def _open_upload(self, key: str, upload: str) -> Path:
        self._require_root()
        folder = self._upload(upload)
        # An id is ours or it is none: it must not lead anywhere else.
        known = upload.isalnum() and (folder / "key").is_file() and (folder / "key").read_text() == key
        if not known:
            raise PartsMissing(f"{key}: no multi-part write {upload!r} is open")
        return folder

    def _require_root(self) -> None:
        if not (self.root / OWN / "uploads").is_dir():
            raise EngineRefused(f"storage folder {self.root} is not there, or was not there when the node started")


def _write(path: Path, data: bytes) -> None:
    with path.open("xb", buffering=0) as file:
        _write_all(file.fileno(), data, 0)
        os.fsync(file.fileno())


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    left = memoryview(data)
    while left:
        written = os.pwrite(descriptor, left, offset)
        left, offset = left[written:], offset + written


def _append(path: Path, data: bytes) -> int:
    """Reserve room at the end of `path` among all processes, write there, and return where. Raises FileNotFoundError."""
    with path.open("r+b", buffering=0) as file:
        descriptor = file.fileno()
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # While we waited for the lock the file may have become the object, which must not grow.
        if not os.path.samestat(path.stat(), os.fstat(descriptor)):
            raise FileNotFoundError(path)
        offset = os.fstat(descriptor).st_size
        os.ftruncate(descriptor, offset + len(data))
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        _write_all(descriptor, data, offset)
        os.fsync(descriptor)
    return offset


def _extents(folder: Path) -> dict[int, _Extent]:
    extents = {}
    for record in folder.iterdir():
        if record.name.isdecimal():
            offset, size, etag = record.read_text().split()
            extents[int(record.name)] = _Extent(Part(int(record.name), int(size), etag), int(offset))
    return extents


def _chosen(key: str, extents: Mapping[int, _Extent], parts: Sequence[Part]) -> list[_Extent]:
    """Return the extents of these very parts. Raises PartsMissing."""
    chosen = [extent for part in parts if (extent := extents.get(part.number)) is not None and extent.part == part]
    if len(chosen) != len(parts):
        raise PartsMissing(f"{key}: {len(parts) - len(chosen)} of {len(parts)} parts are not in the store as given")
    return chosen


def _copy(source: int, target: int, offset: int, length: int) -> None:
    while length:
        copied = os.copy_file_range(source, target, length, offset)
        if not copied:
            raise EngineUnavailable("a part on disk is shorter than its record says")
        offset, length = offset + copied, length - copied


def _publish(whole: Path, target: Path) -> None:
    """Give a file that is on disk its final name, and have that on disk, too."""
    _make_folders(target.parent)
    whole.rename(target)
    _sync_folder(target.parent)


def _make_folders(folder: Path) -> None:
    """Make a folder and what is missing above it, each durable in its parent."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for one in reversed(missing):
        one.mkdir(exist_ok=True)
        _sync_folder(one.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
