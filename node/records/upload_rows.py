"""An upload's row, and the state that it keeps."""

import json
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from attrs import field, frozen

from engines.contract import Part
from node.records.postgres import Row
from replication.strays import Mixed
from replication.upload_state import Tail, UploadState


@frozen
class UploadRow:
    """An upload as the database has it: whoever holds `epoch` owns it until somebody takes it over."""

    id: UUID
    location: str
    epoch: int
    state: UploadState = field(repr=False)


def _tail(key: str, size: int, proof: str | None) -> Tail:
    # A node of 0.6.0 leaves the proof of an earlier tail.
    proven, _, sha256 = (proof or "").partition(" ")
    return Tail(key, size, sha256 if proven == key else None)


def say_mixed(state: UploadState) -> str | None:
    """Return the column that says what the multi-part write may have been ended as."""
    mixed = state.mixed
    if mixed is None:
        return None
    return json.dumps({"upload": state.parts_upload, "size": mixed.size, "spans": mixed.spans})


def _mixed(said: Mapping[str, Any], parts_upload: str | None) -> Mixed | None:
    # A node of 0.9.0 leaves what was said of an earlier write.
    if not said or said["upload"] != parts_upload:
        return None
    return Mixed(said["size"], tuple((start, length) for start, length in said["spans"]))


def read_upload(row: Row) -> UploadRow:
    """Return an upload from its row, which has its location's name besides."""
    parts: Sequence[Any] = json.loads(row["parts"])
    state = UploadState(
        key=row["key"],
        reserved_key=row["reserved_key"],
        algorithm=row["algorithm"],
        offset=row["byte_offset"],
        parts_upload=row["parts_upload"],
        parts=tuple(Part(number, size, etag) for number, size, etag in parts),
        next_part=row["next_part"],
        tail=_tail(row["tail_key"], row["tail_size"], row["tail_proof"]) if row["tail_key"] else None,
        hash_state=row["hash_state"],
        mixed=_mixed(json.loads(row["mixed"] or "{}"), row["parts_upload"]),
    )
    return UploadRow(row["id"], row["location"], row["epoch"], state)
