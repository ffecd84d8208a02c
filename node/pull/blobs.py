"""GET and HEAD of a blob: a redirect to the best store, or a verified stream that fails over in the middle."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from math import inf

import trio

from engines.presign import shared_for, shared_moment
from engines.trace import waiting
from node.answers import Answer, Chunk, Headers, Request, Stream
from node.errors import BLOB_UNKNOWN, UNAVAILABLE, Code, RegistryError
from node.names import check_digest_text
from node.pull.lasting import LONGEST, Decided, until
from node.pull.ranges import ByteRange, RangeNotSatisfiable, parse_range
from node.pull.siblings import siblings
from node.records.collect import HEAD_PROMISE
from node.records.postgres import DatabaseUnavailable, Reads
from node.records.pulls import FoundBlob, find_blob, find_blobs, prolong_blob
from node.registry import Registry
from node.shares import NOBODY
from replication.model import Placement
from replication.reader import NoGoodSource
from replication.sources import choose_sources, in_service, lacks, may_redirect, readable

_BYTES = ("content-type", "application/octet-stream")
_RANGE_UNSATISFIABLE = Code("SIZE_INVALID", 416, "the requested range is not inside the blob")


async def answer_blob(registry: Registry, request: Request, repository: str, digest_text: str) -> Answer:
    """Answer a blob (spec: end-2): 307 where the client may go to the best store, else its bytes, whole or one range.

    Raises RegistryError: BLOB_UNKNOWN also when no copy is left, and to a HEAD when none is trusted, so that a client which pushes
    uploads it again.
    """
    digest = check_digest_text(digest_text)
    found = await look_up_blob(registry, repository, digest, pieces=False)
    if request.method == "HEAD" and found is not None:
        found = await _promised(registry, repository, found)
    if found is None or not found.placements:
        raise RegistryError(BLOB_UNKNOWN, {"name": repository, "digest": digest})
    size = found.blob.size
    try:
        wanted = parse_range(_asked_range(request, digest), size)
    except RangeNotSatisfiable as error:
        raise RegistryError(
            _RANGE_UNSATISFIABLE, {"range": str(error)}, headers=(("content-range", f"bytes */{size}"),)
        ) from error
    headers = _headers(digest)
    if request.method == "HEAD":
        if all(placement.suspect for placement in found.placements):
            # What is asked for by a client that would push it is healed by the push; a pull tries suspect copies, too.
            raise RegistryError(BLOB_UNKNOWN, {"name": repository, "digest": digest})
        return Answer(200, (_BYTES, *headers), length=size)
    states = registry.states()
    board = in_service(registry.watcher.board, states)
    sources = choose_sources(readable(found.placements, states), registry.settings.preference, board)
    if not sources:
        where = ", ".join(sorted(placement.location for placement in found.placements))
        detail = {"digest": digest, "reason": f"every location that holds this blob is out of service now: {where}"}
        raise RegistryError(UNAVAILABLE, detail, retry_after=30)
    _note_wanted(registry, found)
    if size < registry.settings.redirect_minimum_size:
        return await _answer_small(registry, repository, found, sources, wanted, headers)
    best = sources[0]
    if _may_send_away(registry, best) and may_redirect(best, board, registry.now()):
        return _redirect(registry, repository, digest, best, _url(registry, best), headers)
    who = registry.sharer(request.who, request.client)
    return _stream(registry, repository, found, sources, wanted, headers, who)


def _asked_range(request: Request, digest: str) -> str | None:
    """Return the Range header where it counts: with GET, and where a client does not go on with something else (If-Range)."""
    condition = request.headers.get("if-range")
    same = condition is None or condition.strip() == _etag(digest)
    return request.headers.get("range") if request.method == "GET" and same else None


def _note_wanted(registry: Registry, found: FoundBlob) -> bool:
    """Note that the preferred location lacks a blob that is pulled here; return whether it does."""
    settings = registry.settings
    wanted = settings.replicate and lacks(found.placements, settings.preferred)
    if wanted:
        registry.wanted.note(found.blob, settings.preferred)
    return wanted


def blob_at_once(registry: Registry, request: Request, repository: str, digest: str) -> Decided | None:
    """Answer a blob from memory, without waiting: a small one, or by a redirect; None: `answer_blob` answers."""
    if request.method != "GET" or "range" in request.headers:
        return None
    memory, settings, states, now = registry.memory, registry.settings, registry.states(), registry.now()
    found = _remembered(registry, repository, digest, now)
    readable_now = () if found is None else readable(found.placements, states)
    if found is None or not readable_now:
        return None
    headers = _headers(digest)
    get: Callable[[], bytes | None] = bytes
    longest, best, url = LONGEST, None, ""
    if found.blob.size < settings.redirect_minimum_size:
        get = partial(memory.small_blobs.glance, digest)
        data = get()
        if data is None:
            return None
        answer = Answer(200, (_BYTES, *headers), data, outcome="memory")
    else:
        board = in_service(registry.watcher.board, states)
        best = choose_sources(readable_now, settings.preference, board)[0]
        if not _may_send_away(registry, best) or not may_redirect(best, board, now):
            return None
        longest, url = shared_for(settings.presign_lifetime), _url(registry, best)
        answer = _redirect(registry, repository, digest, best, url, headers)
    wanted = _note_wanted(registry, found)

    def holds(now: float) -> float:
        asked_at = memory.blobs.asked_at((repository, digest))
        return until(asked_at, memory.freshness.staleness, now, longest)

    def renewed(now: float) -> float:
        # What is wanted here is noted by whoever decides. How long the blob stays is less every time, and nobody's who pulls it.
        same = _remembered(registry, repository, digest, now)
        if wanted or same is None or (same.blob, same.placements) != (found.blob, found.placements):
            return -inf
        if best is not None:
            if not _may_send_away(registry, best) or _url(registry, best) != url:
                return -inf
            registry.note_redirect(repository, digest, best)
        return holds(now)

    return Decided(answer, holds(now), renewed, "range", get)


def _remembered(registry: Registry, repository: str, digest: str, now: float) -> FoundBlob | None:
    memory = registry.memory
    return memory.blobs.glance((repository, digest), memory.freshness.oldest(repository, digest, now))


def _etag(digest: str) -> str:
    return f'"{digest}"'


def _headers(digest: str) -> Headers:
    return (
        ("docker-content-digest", digest),
        ("etag", _etag(digest)),
        ("accept-ranges", "bytes"),
        ("docker-distribution-api-version", "registry/2.0"),
    )


async def look_up_blob(registry: Registry, repository: str, digest: str, *, pieces: bool) -> FoundBlob | None:
    """Return what the repository knows of a blob, from memory where it is fresh enough."""
    cache = registry.memory.blobs
    asked_at = registry.now()
    warm = cache.get((repository, digest), registry.memory.freshness.oldest(repository, digest, asked_at))
    if warm is not None and (not pieces or warm.blob.pieces is not None):
        return warm

    def ask(database: Reads) -> Awaitable[FoundBlob | None]:
        return find_blob(database, repository, digest, pieces=pieces, grace=registry.settings.garbage_grace)

    near = await _near(registry, ask, registry.memory.freshness.oldest(repository, digest, asked_at))
    if near is not None:
        cache.keep((repository, digest), *near)
        return near[0]
    others = () if pieces else siblings(registry, repository, digest)

    async def look() -> FoundBlob | None:
        if not others:
            return await ask(registry.database)
        several = await find_blobs(
            registry.database, repository, (digest, *others), grace=registry.settings.garbage_grace
        )
        for one in several:
            cache.keep((repository, one.blob.digest), one, asked_at)
        return next((one for one in several if one.blob.digest == digest), None)

    try:
        found = await registry.blobs.get((repository, digest, pieces), look)
    except DatabaseUnavailable:
        seen = cache.get(
            (repository, digest), registry.memory.freshness.oldest(repository, digest, asked_at, away=True)
        )
        if seen is not None:
            return seen
        near = await _near(registry, ask, registry.memory.freshness.oldest(repository, digest, asked_at, away=True))
        if near is None:
            raise
        return near[0]
    if found is not None:
        cache.keep((repository, digest), found, asked_at)
    return found


async def _near(
    registry: Registry, ask: Callable[[Reads], Awaitable[FoundBlob | None]], oldest: float
) -> tuple[FoundBlob, float] | None:
    """Return what a read replica knows, and when that was true, if it is there and that is after `oldest`."""
    if registry.replicas is None:
        return None
    near = await registry.replicas.look(ask, lambda found: found is not None and bool(found.placements), oldest)
    return None if near is None or near[0] is None else (near[0], near[1])


async def _promised(registry: Registry, repository: str, found: FoundBlob) -> FoundBlob | None:
    """Return the blob if it stays for an hour at least, which a client that asks before it pushes relies on.

    A candidate of collection with less left is prolonged; None if the collector was faster.
    """
    settings, digest = registry.settings, found.blob.digest
    # What is in memory has grown older since.
    if found.stays is None or found.stays >= HEAD_PROMISE + settings.metadata_staleness:
        return found
    await prolong_blob(registry.database, repository, digest)
    asked_at = registry.now()
    again = await find_blob(registry.database, repository, digest, pieces=False, grace=settings.garbage_grace)
    if again is not None:
        registry.memory.blobs.keep((repository, digest), again, asked_at)
    return again


def _may_send_away(registry: Registry, placement: Placement) -> bool:
    settings, engine = registry.settings, registry.engines.get(placement.location)
    return (
        engine is not None
        and engine.presigns
        and not settings.proxy_storage
        and settings.locations[placement.location].redirect
    )


def _url(registry: Registry, placement: Placement) -> str:
    lifetime = registry.settings.presign_lifetime
    moment = shared_moment(registry.clock(), lifetime)
    return registry.engines[placement.location].presign(placement.key, now=moment, expires=lifetime)


def _redirect(registry: Registry, repository: str, digest: str, best: Placement, url: str, headers: Headers) -> Answer:
    registry.note_redirect(repository, digest, best)
    return Answer(
        307,
        (
            ("location", url),
            *headers,
            # The URL outlives neither its signature nor a store that falls ill: nobody may keep it.
            ("cache-control", "no-store"),
            ("antipode-location", best.location),
        ),
        outcome="redirect",
    )


async def _answer_small(
    registry: Registry,
    repository: str,
    found: FoundBlob,
    sources: tuple[Placement, ...],
    wanted: ByteRange | None,
    headers: Headers,
) -> Answer:
    """Answer a blob that is not worth a second request of the client's: its bytes, which are kept, or the range of them."""
    blob = found.blob
    data, outcome = registry.memory.small_blobs.get(blob.digest), "memory"
    if data is None and (other := registry.memory.reading.get(blob.digest)) is not None:
        with waiting("store"):
            await other.wait()
        data = registry.memory.small_blobs.get(blob.digest)
    if data is None:
        data = await _read_small(registry, repository, found, sources)
        headers, outcome = (*headers, ("antipode-location", sources[0].location)), "streamed"
    headers = (_BYTES, *headers)
    if wanted is None:
        return Answer(200, headers, data, outcome=outcome)
    content_range = ("content-range", wanted.content_range(blob.size))
    return Answer(206, (*headers, content_range), data[wanted.start : wanted.stop], outcome=outcome)


async def _read_small(registry: Registry, repository: str, found: FoundBlob, sources: tuple[Placement, ...]) -> bytes:
    """Return a small blob's verified bytes and keep them. Who asks for it meanwhile waits, and reads it only if this fails.

    A crowd that pulls a new image else reads its configuration from the store once each: 104 times for 21 blobs and 16 clients.
    """
    digest, ended, data = found.blob.digest, trio.Event(), b""
    reading = registry.memory.reading
    reading[digest] = ended
    try:
        # For everybody who waits for it, so nobody's share has a say in when.
        async with _opened(registry, repository, found, sources, ByteRange(0, found.blob.size), NOBODY) as chunks:
            async for chunk in chunks:
                data += chunk
        registry.memory.small_blobs.keep(digest, data, registry.now())
    finally:
        ended.set()
        if reading.get(digest) is ended:
            del reading[digest]
    return data


def _stream(
    registry: Registry,
    repository: str,
    found: FoundBlob,
    sources: tuple[Placement, ...],
    wanted: ByteRange | None,
    headers: Headers,
    who: str,
) -> Answer:
    size = found.blob.size
    part = wanted or ByteRange(0, size)
    first = sources[0].location
    # The first source is named although another may take over: the head goes out first.
    more: Headers = (_BYTES, ("antipode-location", first))
    if wanted is not None:
        more = (*more, ("content-range", wanted.content_range(size)))
    return Answer(
        206 if wanted else 200,
        (*headers, *more),
        Stream(part.stop - part.start, partial(_opened, registry, repository, found, sources, part, who)),
        outcome="streamed",
    )


@asynccontextmanager
async def _opened(
    registry: Registry, repository: str, found: FoundBlob, sources: tuple[Placement, ...], part: ByteRange, who: str
) -> AsyncIterator[AsyncIterator[Chunk]]:
    """Open a verified stream of part of a blob. Raises RegistryError (503) with every source's reason when none is good."""
    whole = await look_up_blob(registry, repository, found.blob.digest, pieces=True)
    blob = found.blob if whole is None else whole.blob
    try:
        async with (
            registry.gates.streams.enter(who),
            registry.tees.open_blob(blob, sources, part.start, part.stop) as stream,
        ):
            yield stream
    except NoGoodSource as error:
        raise RegistryError(
            UNAVAILABLE, {"digest": blob.digest, "sources": dict(error.reasons)}, retry_after=5
        ) from error
