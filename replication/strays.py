"""Ends a multi-part write that has parts nobody told us of, in a store that makes an object of all parts or of none.

A writer that died, or lost its upload, may have put parts that it did not record, and one may still be on its way. Amazon leaves
out what the list does not name. Ceph's gateway refuses the list (InvalidPart), and a part cannot be taken back: then the write is
ended with all of its parts, which no late one can join any more, and ours are found in the object by their sizes: those are
recorded before, since the store does not know them afterwards.

Nor can a part be put once the write has ended, which a writer may have died too early to record. Then what is to be put is looked
for in the object.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager

from attrs import frozen

from engines.contract import Engine, ObjectMissing, Part, PartsMissing
from replication.parts import Share

_TRIES = 5
"""A part that comes while the write is ended makes it one more."""
_READ = 1 << 20


Waiting = Callable[[], AbstractContextManager[object]]


@frozen
class Mixed:
    """What a write with strays is ended as: the object's size in bytes, and where ours are in it: (start, length), in order."""

    size: int
    spans: tuple[tuple[int, int], ...]


@frozen
class Written:
    """Our parts, in order, of a multi-part write that we have not ended; and what a writer before us has ended it as, perhaps."""

    key: str
    upload: str
    parts: tuple[Part, ...]
    mixed: Mixed | None = None

    @property
    def size(self) -> int:
        """Bytes of ours."""
        return sum(part.size for part in self.parts)


@frozen
class Mixture:
    """A write with strays: all its parts in order, and the object that they make.

    `short` are the numbers of strays that are too small to have others behind them.
    """

    parts: tuple[Part, ...]
    mixed: Mixed
    short: tuple[int, ...]


def mixture(listed: Sequence[Part], ours: Sequence[Part], minimum: int) -> Mixture | None:
    """Return what a store has beside our parts; None where it has nothing else, or not ours: that is not why it refused them.

    `minimum` is the smallest size in bytes of every part but the last.
    """
    mine = {part.number: part for part in ours}
    ordered = sorted(listed, key=lambda part: part.number)
    if len(ordered) == len(mine) or [part for part in ordered if part.number in mine] != list(ours):
        return None
    spans: list[tuple[int, int]] = []
    offset = 0
    for part in ordered:
        if part.number in mine:
            start, length = spans.pop() if spans and sum(spans[-1]) == offset else (offset, 0)
            spans.append((start, length + part.size))
        offset += part.size
    short = tuple(part.number for part in ordered[:-1] if part.number not in mine and part.size < minimum)
    return Mixture(tuple(ordered), Mixed(offset, tuple(spans)), short)


def cut(spans: Sequence[tuple[int, int]], begin: int, size: int) -> Iterator[tuple[int, int]]:
    """Return where the bytes [begin, begin + size) of what the spans make are in their object, in order and at most 1 MiB each.

    Fewer where the spans make less.
    """
    end, before = begin + size, 0
    for start, length in spans:
        low, high = max(begin, before), min(end, before + length)
        for at in range(low, high, _READ):
            yield start + at - before, min(_READ, high - at)
        before += length


async def sift(
    engine: Engine,
    ours: Written,
    share: Share,
    *,
    note: Callable[[Mixed], Awaitable[None]],
    into: Callable[[bytes], Awaitable[None]],
    waiting: Waiting,
) -> None:
    """Make an object of all parts of a write whose store refused ours alone, and give the bytes of ours to `into`.

    Whoever takes them verifies them. `note` records what will be made before it is, and raises where the upload is somebody else's
    by now. Raises PartsMissing where strays are not what is wrong; EngineError.
    """
    for start, length in cut(await _end(engine, ours, share, note, waiting), 0, ours.size):
        with waiting():
            data = await engine.read(ours.key, start, length)
        await into(data)


async def is_there(engine: Engine, key: str, mixed: Mixed | None, begin: int, data: bytes, waiting: Waiting) -> bool:
    """Return whether an upload whose write has ended has these bytes from byte `begin` on. Raises EngineError.

    Its object may be of other requests' bytes: whether it is right as a whole tells its digest.
    """
    try:
        with waiting():
            facts = await engine.head(key)
    except ObjectMissing:
        return False
    compared = 0
    for start, length in cut(_spans(mixed, facts.size) or ((0, facts.size),), begin, len(data)):
        with waiting():
            found = await engine.read(key, start, length)
        if found != data[compared : compared + length]:
            return False
        compared += length
    return compared == len(data)


def _spans(mixed: Mixed | None, size: int) -> tuple[tuple[int, int], ...]:
    """Return where ours are in the object of this size that a write was ended as; nowhere if it was without strays."""
    return mixed.spans if mixed is not None and mixed.size == size else ()


async def _end(
    engine: Engine, ours: Written, share: Share, note: Callable[[Mixed], Awaitable[None]], waiting: Waiting
) -> tuple[tuple[int, int], ...]:
    for _ in range(_TRIES):
        try:
            with waiting():
                listed = await engine.list_parts(ours.key, ours.upload)
        except PartsMissing:
            with waiting():
                facts = await engine.head(ours.key)
            spans = _spans(ours.mixed, facts.size)
            if sum(length for _, length in spans) < ours.size:
                raise
            return spans
        found = mixture(listed, ours.parts, engine.part_minimum)
        if found is None:
            break
        await note(found.mixed)
        if found.short:
            # Nobody reads a byte of it: only its size has to do.
            await share.grow(engine.part_minimum)
            try:
                for number in found.short:
                    with waiting():
                        await engine.put_part(ours.key, ours.upload, number, bytes(engine.part_minimum))
            finally:
                share.shrink(engine.part_minimum)
            continue
        try:
            with waiting():
                await engine.finish_parts(ours.key, ours.upload, found.parts)
        except PartsMissing:
            continue
        return found.mixed.spans
    raise PartsMissing(f"{ours.key}: the store refuses the parts of {ours.upload}, and not for others that it has")
