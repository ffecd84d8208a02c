"""Ends a multi-part write that has parts nobody told us of, in a store that makes an object of all parts or of none.

A writer that died, or lost its upload, may have put parts that it did not record, and one may still be on its way. Amazon leaves
out what the list does not name. Ceph's gateway refuses the list (InvalidPart), and a part cannot be taken back: then the write is
ended with all of its parts, which no late one can join any more, and ours are found in the object by their sizes.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager

from attrs import frozen

from engines.contract import Engine, Part, PartsMissing
from replication.parts import Share

_TRIES = 5
"""A part that comes while the write is ended makes it one more."""
_READ = 1 << 20


@frozen
class Written:
    """Our parts, in order, of a multi-part write that was not ended."""

    key: str
    upload: str
    parts: tuple[Part, ...]


@frozen
class Mixture:
    """A write with strays: all its parts in order, and where ours are in the object that they make: (start, length) in bytes.

    `short` are the numbers of strays that are too small to have others behind them.
    """

    parts: tuple[Part, ...]
    spans: tuple[tuple[int, int], ...]
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
    return Mixture(tuple(ordered), tuple(spans), short)


async def sift(
    engine: Engine,
    ours: Written,
    share: Share,
    *,
    own: Callable[[], Awaitable[None]],
    into: Callable[[bytes], Awaitable[None]],
    waiting: Callable[[], AbstractContextManager[object]],
) -> None:
    """Make an object of all parts of a write whose store refused ours alone, and give the bytes of ours to `into`.

    Whoever takes them verifies them. `own` is called before anything is changed, and raises where the upload is somebody else's by
    now. Raises PartsMissing where strays are not what is wrong; EngineError.
    """
    for start, length in await _end(engine, ours, share, own, waiting):
        for offset in range(start, start + length, _READ):
            with waiting():
                data = await engine.read(ours.key, offset, min(_READ, start + length - offset))
            await into(data)


async def _end(
    engine: Engine,
    ours: Written,
    share: Share,
    own: Callable[[], Awaitable[None]],
    waiting: Callable[[], AbstractContextManager[object]],
) -> tuple[tuple[int, int], ...]:
    owned = False
    for _ in range(_TRIES):
        with waiting():
            found = mixture(await engine.list_parts(ours.key, ours.upload), ours.parts, engine.part_minimum)
        if found is None:
            break
        if not owned:
            await own()
            owned = True
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
        return found.spans
    raise PartsMissing(f"{ours.key}: the store refuses the parts of {ours.upload}, and not for others that it has")
