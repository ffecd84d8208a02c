"""Brings a database up to what the stores say: one that was restored from a backup, or one that a rescue begins with.

In this order: policies and what was deleted whole, copies that are seen in their stores, manifests, tags. Idempotent, in pages, and
safe while nodes run: what the records changed later than the journals say is left alone.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any
from uuid import UUID

import trio
from attrs import define, evolve, field, frozen

from engines.contract import Engine, EngineError, ObjectMissing
from node.errors import RegistryError
from node.findings import Finding, Tell
from node.journal.facts import Damaged, JournalKey, StoredManifest, decode_manifest, manifest_digest, manifest_prefix
from node.journal.reader import GIVE_UP, list_journals, read_journals
from node.journal.store import key_pages, read_object
from node.push.reading import read_manifest
from node.records.history import set_tag_expiration
from node.records.locations import apply_defaults
from node.records.policies import load_policy, read_policy, write_policy
from node.records.postgres import Database
from node.records.replay import (
    MissingLink,
    begin_journals_anew,
    delete_gone,
    drop_overtaken,
    forget_gone_copies,
    join_awaited,
    missing_links,
    move_tags_on,
    place_copies,
    restore_manifest,
    stage_own,
    staged,
    unlink_gone,
)
from node.records.replay_objects import (
    Stored,
    adopt_journal_objects,
    adopt_manifest_objects,
    not_linked,
    unaccounted_manifests,
    was_unlinked,
)
from node.records.replay_turn import check_turn, clear_facts, take_turn

_PAGE = 200
_AT_ONCE = 8
_JUST_NOW = 600.0
"""Seconds before the journals end from which on a manifest may have been written without a word in them."""


@frozen
class Replayed:
    """What a replay did. Counts; `until` is POSIX seconds, None without any journal."""

    journals: int = 0
    """Objects of the journals that were read."""
    until: float | None = None
    """When the last change was made that the journals have: what came later is not known."""
    policies: int = 0
    repositories_deleted: int = 0
    copies: int = 0
    """Copies that were seen in their stores and not read: unverified."""
    manifests: int = 0
    untagged: int = 0
    """Of these, such as the journals do not know yet."""
    missing: int = 0
    """Manifests that no store has."""
    unlinked: int = 0
    """Manifests that left their repositories."""
    copies_gone: int = 0
    tags: int = 0
    tags_deleted: int = 0
    tags_without: int = 0
    """Tags whose manifest is missing."""
    unreached: tuple[str, ...] = ()
    """Locations whose store did not give all that was asked of it: the replay must be repeated with them."""


@define(eq=False)
class _Work:
    database: Database
    engines: Mapping[str, Engine]
    library: str
    tell: Tell
    progress: Callable[[Replayed], None]
    turn: UUID
    gaps: bool = False
    """Whether a snapshot of the journals could not be read: they do not know all that the stores have."""
    done: Replayed = field(factory=Replayed)
    silent: Counter[str] = field(factory=Counter)
    """Manifests in a row that each store could not be asked for."""

    def unreachable(self, location: str, error: EngineError, text: str) -> None:
        """Tell that a store did not give what was asked of it."""
        self.tell(Finding("unreachable", location, str(error), text))
        self.note(unreached=tuple(sorted({*self.done.unreached, location})))

    def note(self, **counts: Any) -> None:
        self.done = evolve(self.done, **counts)
        self.progress(self.done)


async def replay(
    database: Database,
    engines: Mapping[str, Engine],
    library: str,
    tell: Tell,
    progress: Callable[[Replayed], None] = lambda _: None,
    turn: UUID | None = None,
) -> Replayed:
    """Do all of the above. `library` is LIBRARY_NAMESPACE. Raises LedgerUnavailable, and Overtaken where `turn` is over.

    A store that cannot be asked is told of and left out, and `unreached`: repeating the replay when it is back does the rest.
    """
    turn = turn or await take_turn(database)
    await clear_facts(database, turn)
    found = await list_journals(engines, tell)
    journals = await read_journals(database, engines, found, tell)
    await stage_own(database)
    await drop_overtaken(database)
    work = _Work(database, engines, library, tell, progress, turn, journals.gaps)
    work.note(journals=journals.objects, until=journals.until, unreached=tuple(sorted(journals.unreached)))
    work.note(policies=await _policies(database), repositories_deleted=await delete_gone(database))
    for location, engine in sorted(engines.items()):
        await _copies(work, location, engine)
    await _manifests(work)
    for location, engine in sorted(engines.items()):
        await _objects(work, location, engine, found.keys.get(location, {}))
    await check_turn(database, turn)
    await join_awaited(database)
    work.note(unlinked=await unlink_gone(database), copies_gone=await forget_gone_copies(database))
    tags = await move_tags_on(database)
    for line in tags.without:
        name, _, digest = line.partition(" ")
        tell(Finding("missing", None, digest, f"the tag {name} points to it"))
    work.note(tags=tags.moved, tags_deleted=tags.deleted, tags_without=len(tags.without))
    await begin_journals_anew(database)
    await clear_facts(database, turn)
    return work.done


async def _policies(database: Database) -> int:
    changed = 0
    for named in await staged(database, "namespace"):
        if named.fact is None:
            continue
        policy = load_policy(None if named.fact["policy"] is None else json.dumps(named.fact["policy"]))
        if (await read_policy(database, named.name)).policy != policy:
            await write_policy(database, named.name, policy)
            changed += 1
        expiration = named.fact["tag_expiration"]
        await set_tag_expiration(
            database, named.name, float(expiration) if isinstance(expiration, int | float) else None
        )
    for named in await staged(database, "defaults"):
        if named.fact is not None and named.fact["locations"]:
            names: Any = named.fact["locations"]
            changed += await apply_defaults(database, names)
    return changed


async def _copies(work: _Work, location: str, engine: Engine) -> None:
    """Place the copies that the journals know and a store has."""
    try:
        async with aclosing(key_pages(engine, engine.prefix)) as pages:
            async for keys in pages:
                await check_turn(work.database, work.turn)
                placed = await place_copies(work.database, location, [key for key in keys if not _ours(engine, key)])
                work.note(copies=work.done.copies + placed)
    except EngineError as error:
        work.unreachable(location, error, "its copies were not looked at to the end")


def _ours(engine: Engine, key: str) -> bool:
    return key.startswith(tuple(f"{engine.prefix}{part}/" for part in ("_antipode", "journal", "manifests")))


async def _manifests(work: _Work) -> None:
    after = ""
    while page := await missing_links(work.database, after, _PAGE):
        await check_turn(work.database, work.turn)
        todo = iter(page)

        async def worker(todo: Any = todo) -> None:
            for link in todo:
                await _link(work, link)

        async with trio.open_nursery() as nursery:
            for _ in range(_AT_ONCE):
                nursery.start_soon(worker)
        after = f"{page[-1].repository}@{page[-1].digest}"


async def _link(work: _Work, link: MissingLink) -> None:
    body = link.body if link.body is not None else await _fetch(work, link.digest)
    if body is not None:
        stored = StoredManifest(link.repository, link.digest, link.media_type, None, link.at, body)
        if await _restore(work, stored):
            return
    work.tell(Finding("missing", None, link.digest, f"of {link.repository}: no store has its manifest"))
    work.note(missing=work.done.missing + 1)


async def _restore(work: _Work, stored: StoredManifest) -> bool:
    """Link a manifest whose bytes have the right digest; False: they cannot be read as what they should be."""
    try:
        facts = read_manifest(stored.body, stored.media_type, stored.digest)
    except RegistryError as error:
        work.tell(Finding("damaged", None, stored.digest, f"of {stored.repository}: {error}"))
        return False
    sizes = {digest: size for digest, size in _sizes(json.loads(stored.body)) if digest in facts.blobs}
    await restore_manifest(work.database, stored.repository, work.library, facts, sizes, stored.at)
    work.note(manifests=work.done.manifests + 1)
    return True


def _sizes(document: Mapping[str, Any]) -> Sequence[tuple[str, int]]:
    """Return digest and size of all that a manifest that was read describes."""
    descriptors = [document.get("config")]
    for name in ("layers", "blobs", "manifests"):
        descriptors += document.get(name) or []
    return [(one["digest"], one["size"]) for one in descriptors if one]


async def _fetch(work: _Work, digest: str) -> bytes | None:
    """Return the bytes of a manifest from the first store that has them right."""
    for location, engine in sorted(work.engines.items()):
        if work.silent[location] >= GIVE_UP:
            continue
        try:
            body = await _fetch_from(work, location, engine, digest)
        except EngineError as error:
            work.silent[location] += 1
            work.unreachable(location, error, f"while the manifest {digest} was looked for")
            continue
        work.silent[location] = 0
        if body is not None:
            return body
    return None


async def _fetch_from(work: _Work, location: str, engine: Engine, digest: str) -> bytes | None:
    page = await engine.list_keys(manifest_prefix(engine.prefix, digest))
    for key in page.keys:
        stored = await _read(work, location, engine, key)
        if stored is not None:
            return stored.body
    return None


async def _read(work: _Work, location: str, engine: Engine, key: str) -> StoredManifest | None:
    """Return what a manifest object holds, None (and told) if it is damaged. Raises EngineError."""
    try:
        stored = decode_manifest(await read_object(engine, key))
    except Damaged as error:
        work.tell(Finding("damaged", location, key, str(error)))
        return None
    algorithm, _, hexdigest = stored.digest.partition(":")
    named = manifest_digest(engine.prefix, key)
    if stored.digest != named or hashlib.new(algorithm, stored.body).hexdigest() != hexdigest:
        work.tell(Finding("damaged", location, key, "its bytes have another digest"))
        return None
    return stored


async def _objects(work: _Work, location: str, engine: Engine, journal: Mapping[str, JournalKey]) -> None:
    """Take over what the journal writer wrote: what no row accounts for would stay in the store for ever."""
    try:
        async with aclosing(key_pages(engine, f"{engine.prefix}manifests/")) as pages:
            async for keys in pages:
                named = [key for key in keys if manifest_digest(engine.prefix, key) is not None]
                await check_turn(work.database, work.turn)
                unknown = await unaccounted_manifests(work.database, location, named)
                objects = await _read_all(work, location, engine, unknown)
                for key in await not_linked(work.database, objects):
                    await _take_just_pushed(work, location, engine, key)
                # What no repository needs may be needed by what was not read.
                await adopt_manifest_objects(work.database, location, objects, bury=not work.done.unreached)
    except EngineError as error:
        work.unreachable(location, error, "its manifests were not looked at to the end")
    await adopt_journal_objects(work.database, location, {key: (said.kind, said.hour) for key, said in journal.items()})


async def _read_all(work: _Work, location: str, engine: Engine, keys: Sequence[str]) -> Sequence[Stored]:
    """Return of which repository manifest objects say that they are: several may have the same. Damaged ones are told of."""
    found: list[Stored] = []
    failed: list[EngineError] = []
    todo = iter(keys)

    async def worker() -> None:
        for key in todo:
            try:
                stored = await _read(work, location, engine, key)
            except ObjectMissing:
                continue
            except EngineError as error:
                failed.append(error)
                nursery.cancel_scope.cancel()
                return
            if stored is not None:
                found.append(Stored(key, stored.repository, stored.digest))

    async with trio.open_nursery() as nursery:
        for _ in range(_AT_ONCE):
            nursery.start_soon(worker)
    if failed:
        raise failed[0]
    return found


async def _take_just_pushed(work: _Work, location: str, engine: Engine, key: str) -> None:
    """Link a manifest that no journal knows yet: its object is written first. What was deleted stays so."""
    stored = await _read(work, location, engine, key)
    if stored is None:
        return
    until = work.done.until
    if until is not None and stored.at < until - _JUST_NOW and not work.gaps:
        return
    if await was_unlinked(work.database, stored.repository, stored.digest, stored.at):
        return
    if await _restore(work, stored):
        work.tell(Finding("untagged", location, stored.digest, f"of {stored.repository}: no journal knows its tags"))
        work.note(untagged=work.done.untagged + 1)
