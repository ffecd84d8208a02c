"""What the journal's objects hold and how they are named. Pure: entries to bytes and back, keys to what they mean.

An object is gzip over lines of JSON. The first line says what it is, each other one is an entry: a thing, when the database
changed it, and what it is since then (`fact`; null: gone). The last word about a thing counts, by time and then by number, so
that objects may be read in any order and any number of times.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from attrs import field, frozen

VERSION = 1

KINDS = ("tag", "link", "copy", "repository", "namespace", "location", "defaults")
"""What entries are about. Names are `repository:tag`, `repository@digest`, `location key`, and plain ones."""

Fact = Mapping[str, Any]


class Damaged(Exception):
    """An object is not what its key says. The text says how."""


@frozen
class Entry:
    """One change. `at` is microseconds since the epoch by the database's clock, `seq` orders what has the same `at`."""

    kind: str
    name: str
    at: int
    seq: int
    fact: Fact | None


def encode(kind: str, entries: Iterable[Entry], facts: Fact | None = None) -> bytes:
    """Return a journal object of `kind` (batch, hour, page or complete); `facts` are said in its first line."""
    lines = [{"antipode": "journal", "version": VERSION, "kind": kind, **(facts or {})}]
    lines += [
        {"kind": entry.kind, "name": entry.name, "at": entry.at, "seq": entry.seq, "fact": entry.fact}
        for entry in entries
    ]
    return gzip.compress("".join(f"{json.dumps(line, separators=(',', ':'))}\n" for line in lines).encode(), mtime=0)


def decode(data: bytes) -> tuple[Fact, Sequence[Entry]]:
    """Return the first line and the entries of a journal object. Raises Damaged."""
    try:
        lines = [json.loads(line) for line in gzip.decompress(data).decode().splitlines()]
        head = lines[0]
        if head["antipode"] != "journal" or head["version"] > VERSION:
            raise Damaged(
                f"it is {head['antipode']} version {head['version']}, this program knows journal version {VERSION}"
            )
        return head, [Entry(line["kind"], line["name"], line["at"], line["seq"], line["fact"]) for line in lines[1:]]
    except (OSError, EOFError, zlib.error, ValueError, LookupError, TypeError) as error:
        raise Damaged(f"it cannot be read: {type(error).__name__}: {error}") from None


def last_words(entries: Iterable[Entry]) -> Sequence[Entry]:
    """Return the last entry about each thing, in the order of time."""
    last: dict[tuple[str, str], Entry] = {}
    for entry in entries:
        known = last.get((entry.kind, entry.name))
        if known is None or (known.at, known.seq) < (entry.at, entry.seq):
            last[entry.kind, entry.name] = entry
    return sorted(last.values(), key=lambda entry: (entry.at, entry.seq, entry.kind, entry.name))


_KEY = re.compile(r"journal/(?:(\d{8}T\d\d)/(batch|hour)|snapshot-(\d{8}T\d{6})/(page|complete))\.[0-9a-f]+$")


@frozen
class JournalKey:
    """What the key of a journal object says. `hour`: POSIX seconds; of a page, when its snapshot was begun."""

    kind: str
    hour: float


def journal_key(prefix: str, kind: str, hour: float, nonce: str) -> str:
    """Return a fresh key for a journal object; `nonce` makes sure that it is never used again."""
    when = datetime.fromtimestamp(hour, UTC)
    folder = f"{when:%Y%m%dT%H}" if kind in ("batch", "hour") else f"snapshot-{when:%Y%m%dT%H%M%S}"
    return f"{prefix}journal/{folder}/{kind}.{nonce}"


def read_key(prefix: str, key: str) -> JournalKey | None:
    """Return what a key under `prefix` says, None if it is none of a journal object."""
    found = _KEY.fullmatch(key.removeprefix(prefix)) if key.startswith(prefix) else None
    if found is None:
        return None
    hour, kind, second, part = found.groups()
    form, text = ("%Y%m%dT%H", hour) if hour else ("%Y%m%dT%H%M%S", second)
    return JournalKey(kind or part, datetime.strptime(text, form).replace(tzinfo=UTC).timestamp())


@frozen
class StoredManifest:
    """A manifest as its object in a store has it. `at`: when it was linked, POSIX seconds."""

    repository: str
    digest: str
    media_type: str
    subject: str | None
    at: float
    body: bytes = field(repr=False)


def encode_manifest(manifest: StoredManifest) -> bytes:
    """Return the object: one line of JSON that says what the manifest is, then its very bytes."""
    head = {
        "antipode": "manifest",
        "version": VERSION,
        "repository": manifest.repository,
        "digest": manifest.digest,
        "media_type": manifest.media_type,
        "subject": manifest.subject,
        "at": manifest.at,
    }
    return json.dumps(head, separators=(",", ":")).encode() + b"\n" + manifest.body


def decode_manifest(data: bytes) -> StoredManifest:
    """Return what an object holds; whether the bytes have the digest is the caller's to check. Raises Damaged."""
    line, newline, body = data.partition(b"\n")
    try:
        head = json.loads(line)
        if not newline or head["antipode"] != "manifest" or head["version"] > VERSION:
            raise Damaged(f"it is no manifest object of version {VERSION}")
        return StoredManifest(
            head["repository"], head["digest"], head["media_type"], head["subject"], float(head["at"]), body
        )
    except (ValueError, LookupError, TypeError) as error:
        raise Damaged(f"it cannot be read: {type(error).__name__}: {error}") from None


_MANIFEST = re.compile(r"manifests/(sha256|sha512)/[0-9a-f]{2}/([0-9a-f]+)\.[^/]+$")


def manifest_digest(prefix: str, key: str) -> str | None:
    """Return the digest that a manifest object's key names, None for another key."""
    found = _MANIFEST.fullmatch(key.removeprefix(prefix)) if key.startswith(prefix) else None
    return f"{found[1]}:{found[2]}" if found else None


def manifest_prefix(prefix: str, digest: str) -> str:
    """Return what the keys of a manifest's objects begin with."""
    algorithm, _, hexdigits = digest.partition(":")
    return f"{prefix}manifests/{algorithm}/{hexdigits[:2]}/{hexdigits}."
