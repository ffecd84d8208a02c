"""How hints travel: small JSON with a version and the sender's id. Pure.

    {"v": 1, "from": "us-1/9f3a", "hints": [["wake", ["eu"]], ["forget", "team/app", null], ["placed", "sha256:..", "eu"]]}

Neither end trusts the other: what cannot be parsed raises `BadMessage`, and unknown kinds of hints (a newer node's) count as
"everything changed", which is always safe.
"""

import json
from collections.abc import Iterable, Iterator, Sequence

from attrs import frozen

from replication.ports import Forget, Heard, Hint, News, Placed, Seen, Wake

VERSION = 1
MOST_BYTES = 7_500
"""NOTIFY takes payloads below 8000 bytes; Redis would take more, but one limit is simpler than two."""

EVERYTHING: tuple[Hint, ...] = (Forget(), Wake())
"""What a subscriber is told when hints were lost: nothing that it holds is certain, and there may be work."""


class BadMessage(Exception):
    """A message that is not one of ours, or of a version that this node does not know."""


@frozen
class Message:
    """A message as received."""

    sender: str
    hints: tuple[Hint, ...]


def _pack(hint: Hint) -> list[object]:
    match hint:
        case Wake(locations):
            return ["wake", list(locations)]
        case Forget(repository, digest, None):
            return ["forget", repository, digest]
        case Forget(repository, digest, token):
            return ["forget", repository, digest, token]
        case Heard(token, node):
            return ["heard", token, node]
        case Placed(digest, location):
            return ["placed", digest, location]
        case Seen(location, verdict, node):
            return ["seen", location, verdict, node]
        case News(topic):
            return ["news", topic]


def _envelope(sender: str, packed: Iterable[str]) -> str:
    return f'{{"v":{VERSION},"from":{json.dumps(sender)},"hints":[{",".join(packed)}]}}'


def encode(sender: str, hints: Sequence[Hint]) -> Iterator[str]:
    """Yield these hints as messages of at most MOST_BYTES, in order; equal hints once. All text is ASCII.

    A hint too long for a message of its own is sent as what it is a case of: any work, everything to forget.
    """
    room = MOST_BYTES - len(_envelope(sender, ()))
    batch: list[str] = []
    used = 0
    for hint in dict.fromkeys(hints):
        for packed in _fitting(hint, room):
            # The comma counts too.
            if batch and used + len(packed) + 1 > room:
                yield _envelope(sender, batch)
                batch, used = [], 0
            batch.append(packed)
            used += len(packed) + 1
    if batch:
        yield _envelope(sender, batch)


def _fitting(hint: Hint, room: int) -> Iterator[str]:
    packed = json.dumps(_pack(hint), separators=(",", ":"))
    if len(packed) < room:
        yield packed
        return
    for wider in (Wake(),) if isinstance(hint, Wake) else EVERYTHING:
        yield json.dumps(_pack(wider), separators=(",", ":"))


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    raise BadMessage(f"text expected, not {type(value).__name__}")


def _text_or_none(value: object) -> str | None:
    return None if value is None else _text(value)


def _unpack(packed: object) -> tuple[Hint, ...]:
    match packed:
        case ["wake", list(locations)]:
            return (Wake(tuple(map(_text, locations))),)
        case ["forget", repository, digest]:
            return (Forget(_text_or_none(repository), _text_or_none(digest)),)
        case ["forget", repository, digest, token]:
            return (Forget(_text_or_none(repository), _text_or_none(digest), _text(token)),)
        case ["heard", token, node]:
            return (Heard(_text(token), _text(node)),)
        case ["placed", digest, location]:
            return (Placed(_text(digest), _text(location)),)
        case ["seen", location, verdict, node]:
            return (Seen(_text(location), _text(verdict), _text(node)),)
        case ["news", topic]:
            return (News(_text(topic)),)
        case [str(), *_]:
            return EVERYTHING
        case _:
            raise BadMessage("a hint is a list that begins with its kind")


def decode(payload: str | bytes) -> Message:
    """Return the message in a payload. Raises BadMessage."""
    try:
        document = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise BadMessage("not JSON") from error
    match document:
        case {"v": int(version), "from": str(sender), "hints": list(hints)} if version == VERSION:
            return Message(sender, tuple(hint for packed in hints for hint in _unpack(packed)))
        case {"v": version}:
            raise BadMessage(f"version {version!r} or shape unknown")
        case _:
            raise BadMessage("not a message of ours")
