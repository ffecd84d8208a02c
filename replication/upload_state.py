"""What an upload is between two requests: all that another node needs to go on with it."""

from attrs import field, frozen

from engines.contract import Part
from replication.strays import Mixed


@frozen
class Tail:
    """The bytes of an upload behind its last part, kept as an object of their own between two requests."""

    key: str
    size: int
    sha256: str | None = None
    """In hexadecimal: what is built upon must be what was stored. None: a node of 0.6.0 wrote it."""


@frozen
class UploadState:
    """An upload at rest. `offset` counts all bytes taken in: those of the parts and of the tail."""

    key: str
    reserved_key: str
    algorithm: str = "sha256"
    offset: int = 0
    parts_upload: str | None = None
    parts: tuple[Part, ...] = ()
    next_part: int = 1
    tail: Tail | None = None
    hash_state: bytes | None = field(default=None, repr=False)
    mixed: Mixed | None = None
    """What the multi-part write may have been ended as, and no blob recorded for it."""
