"""PUT of a manifest: read, checked, and committed together with its tags; and the deletes of manifests, tags and blobs."""

import hashlib
import json
from collections.abc import Awaitable, Callable

import structlog
import trio
from attrs import evolve

from node.answers import Answer, Headers, Request
from node.auth.held import Held
from node.errors import (
    BLOB_UNKNOWN,
    DIGEST_INVALID,
    MANIFEST_BLOB_UNKNOWN,
    MANIFEST_TOO_LARGE,
    MANIFEST_UNKNOWN,
    TAG_INVALID,
    UNAVAILABLE,
    UNSUPPORTED,
    RegistryError,
)
from node.names import check_digest, is_tag, namespace_of
from node.push.durability import Demand, check_possible, make_durable, read_demand
from node.push.idempotency import REFUSED_BEFORE, Once, identify, identify_delete, read_key
from node.push.quota import quota_warning
from node.push.reading import read_manifest
from node.records.auditlog import Line
from node.records.blobs import Unlinking, unlink_blob
from node.records.closures import move_tags
from node.records.idempotency import how_it_ended, refuse
from node.records.manifests import (
    CompiledTags,
    ManifestCommit,
    ManifestFacts,
    commit_manifest,
    delete_manifest,
    delete_tag,
)
from node.records.policies import load_policy
from node.records.postgres import TagImmutable
from node.records.quotas import OverQuota
from node.records.rights import RightsLapsed
from node.registry import Registry
from replication.digests import Digest
from replication.policy import NO_POLICY, Policy, dump_policy
from replication.ports import Forget, Wake

_log = structlog.get_logger("antipode.quotas")

_MOST_TAGS = 50
_POLICY_TRIES = 5
_SLACK = 30.0
"""Seconds that a push may take beside its wait for copies."""
_REFUSALS = (RegistryError, OverQuota, TagImmutable, RightsLapsed)
_LEGACY: Headers = (("docker-distribution-api-version", "registry/2.0"),)


async def put_manifest(registry: Registry, request: Request, repository: str, reference: str) -> Answer:
    """Store a manifest by tag or digest, with any number of further tags (spec: end-7a, end-7b). Raises RegistryError.

    Where the header Antipode-Durability or the policy asks for copies, the manifest can be pulled by digest at once, and its tags
    move, and this returns, when the copies are there. Of all requests with the same Idempotency-Key one does it, on whichever node,
    and the others are answered as that one; a refusal stands for all of them where the key says so. Raises RightsLapsed.
    """
    named = check_digest(reference) if ":" in reference else None
    tags = request.query.get("tag", ()) if named is not None else (reference,)
    for tag in tags:
        if not is_tag(tag):
            detail = {
                "tag": tag[:160],
                "reason": "letters, digits and '_', then also '.' and '-', at most 128 characters",
            }
            raise RegistryError(TAG_INVALID, detail)
    if len(tags) > _MOST_TAGS:
        raise RegistryError(TAG_INVALID, {"tags": len(tags), "reason": f"at most {_MOST_TAGS} at once"})
    demand, key = read_demand(registry, request), read_key(request)
    who = registry.sharer(request.who, request.client)
    async with registry.gates.pushes.enter(who):
        body = await _read_body(request, registry.settings.maximum_manifest_size)
        digest = _digest_of(body, named)
        facts = read_manifest(body, request.headers.get("content-type"), digest)
        once = None
        if key is not None:
            once = identify(key, request.who, repository, reference, tags, digest, facts.media_type)
        note = registry.line(request, "push", repository, digest=digest, tags=list(tags), media_type=facts.media_type)
        policy, held, began = NO_POLICY, _still(request, once), registry.clock()
        try:
            _check_rights(registry, request, repository, held)
            policy, demand, committed = await _commit(
                registry, repository, facts, tuple(tags), demand, note, once, held
            )
        except _REFUSALS as refusal:
            await _let_stand(registry, once, refusal)
            committed = ManifestCommit(done=True)
    waits = demand.durability.waits and not committed.done
    registry.acknowledged.note(repository, digest, () if waits else tags, trio.current_time())
    registry.tell(Forget(repository, digest), Wake())
    if waits:
        # Outside of the gate: who waits for copies works on nothing.
        del body
        patterns = (
            frozenset().union(*(policy.for_tag(tag) for tag in tags)) if registry.settings.replicate else frozenset()
        )
        durability = str(demand.durability)
        note = registry.line(request, "moveTags", repository, digest=digest, tags=list(tags), durability=durability)
        try:
            await make_durable(registry, repository, digest, demand, patterns, who)
            if held is not None:
                # A token may run out while it waits, but for no longer than it may.
                held = evolve(held, until=max(held.until, began + demand.seconds + _SLACK))
            _check_rights(registry, request, repository, held)
            await _move(registry, repository, digest, tuple(tags), note, once, held)
        except _REFUSALS as refusal:
            await _let_stand(registry, once, refusal)
        registry.acknowledged.note(repository, digest, tags, trio.current_time())
        registry.tell(Forget(repository, digest), Wake())
    headers: Headers = (
        ("location", f"/v2/{repository}/manifests/{reference}"),
        ("docker-content-digest", digest),
        *_LEGACY,
    )
    if facts.subject is not None:
        headers = (*headers, ("oci-subject", facts.subject))
    if named is not None and tags:
        headers = (*headers, ("oci-tag", ", ".join(tags)))
    if (warning := committed.warning) is not None:
        _log.warning("a namespace is beyond its quota's warning", namespace=warning.namespace, bytes=warning.used)
        headers = (*headers, ("warning", f'299 - "{quota_warning(warning)}"'))
    return Answer(201, headers, outcome="database")


async def _let_stand(registry: Registry, once: Once | None, refusal: Exception) -> None:
    """Raise what a try of a request was refused by, and let no other do it, where its key says so; return if one has done it."""
    passing = isinstance(refusal, RegistryError) and refusal.code.status >= 500
    if once is None or not once.final or passing or await refuse(registry.database, once.id):
        raise refusal


def _still(request: Request, once: Once | None) -> Held | None:
    """Return the rights that a request must still have when it is done: another try may have been refused without them.

    Such a refusal comes before the body, which tells which request it is, and leaves nothing behind.
    """
    return request.held if once is not None and once.final else None


def _check_rights(registry: Registry, request: Request, repository: str, held: Held | None) -> None:
    """Raise RightsLapsed where rights were taken away while a manifest came, or its copies were waited for.

    As far as this node has heard, as when the request was admitted; what is `held` the statement compares itself.
    """
    if held is None and request.held is not None and not registry.access.holds(request.held, repository):
        raise RightsLapsed


def _check_end(registry: Registry, held: Held | None) -> None:
    """Raise RightsLapsed where what proved them has ended. The statement that follows is done soon, or never (`in_time`)."""
    if held is not None and registry.clock() > held.until:
        raise RightsLapsed


async def _commit(
    registry: Registry,
    repository: str,
    facts: ManifestFacts,
    tags: tuple[str, ...],
    demand: Demand,
    note: Line,
    once: Once | None,
    held: Held | None,
) -> tuple[Policy, Demand, ManifestCommit]:
    """Commit under the namespace's policy; return it, what it makes of the demand, and what became of it.

    Tags move if nothing is waited for.
    """
    namespace = namespace_of(repository, registry.settings.library_namespace)

    async def commit(version: int, policy: Policy) -> ManifestCommit:
        now = demand.under(policy)
        other = await check_possible(registry, namespace, demand, version, policy)
        if other is not None:
            return ManifestCommit(stale=True, version=other.version, policy=json.dumps(dump_policy(other.policy)))
        waits = now.durability.waits
        _check_end(registry, held)
        # The tags have a line of their own when they move.
        said = {**note.detail, "tags": [], "durability": str(now.durability)} if waits else note.detail
        return await commit_manifest(
            registry.database,
            repository,
            registry.settings.library_namespace,
            facts,
            CompiledTags((), version) if waits else _compiled(registry, tags, version, policy),
            sparse=registry.settings.sparse_index,
            default_quota=registry.current().default_quota,
            note=evolve(note, detail=said),
            once=None if once is None else once.id,
            moves=not waits,
            held=held,
        )

    policy, committed = await _under_policy(registry, repository, commit)
    if committed.refused:
        raise RegistryError(REFUSED_BEFORE)
    if committed.missing:
        raise RegistryError(MANIFEST_BLOB_UNKNOWN, {"name": repository, "missing": list(committed.missing)})
    return policy, demand.under(policy), committed


async def _move(
    registry: Registry,
    repository: str,
    digest: str,
    tags: tuple[str, ...],
    note: Line,
    once: Once | None,
    held: Held | None,
) -> None:
    """Move tags to a manifest whose copies are where they were asked for."""
    if not tags:
        return

    async def move(version: int, policy: Policy) -> ManifestCommit:
        compiled = _compiled(registry, tags, version, policy)
        id_ = None if once is None else once.id
        _check_end(registry, held)
        return await move_tags(registry.database, repository, digest, compiled, note, id_, held)

    _, moved = await _under_policy(registry, repository, move)
    if moved.refused:
        raise RegistryError(REFUSED_BEFORE)
    if moved.missing:
        reason = "it was deleted while its copies were waited for"
        raise RegistryError(MANIFEST_UNKNOWN, {"name": repository, "digest": digest, "reason": reason})


def _compiled(registry: Registry, tags: tuple[str, ...], version: int, policy: Policy) -> CompiledTags:
    places = tuple((tag, location) for tag in tags for location in sorted(policy.for_tag(tag)))
    return CompiledTags(tags, version, places if registry.settings.replicate else ())


async def _under_policy(
    registry: Registry, repository: str, work: Callable[[int, Policy], Awaitable[ManifestCommit]]
) -> tuple[Policy, ManifestCommit]:
    """Do work that depends on the namespace's policy; once more if that turns out to be another one than is remembered here."""
    namespace = namespace_of(repository, registry.settings.library_namespace)
    known = registry.memory.policies.get(namespace) or (0, NO_POLICY)
    for _ in range(_POLICY_TRIES):
        version, policy = known
        done = await work(version, policy)
        if not done.stale:
            return policy, done
        known = done.version, load_policy(done.policy)
        registry.memory.policies.keep(namespace, known, trio.current_time())
    raise RegistryError(UNAVAILABLE, {"reason": "the namespace's policy keeps changing"}, retry_after=1)


async def delete_reference(registry: Registry, request: Request, repository: str, reference: str) -> Answer:
    """Delete a tag, or a manifest with all its tags (spec: end-9). Raises RegistryError. The Idempotency-Key is as with a PUT."""
    named = str(check_digest(reference)) if ":" in reference else None
    key = read_key(request)
    once = None if key is None else identify_delete(key, request.who, repository, reference[:160])
    try:
        await _delete(registry, request, repository, reference, named, once)
    except _REFUSALS as refusal:
        await _let_stand(registry, once, refusal)
    if named is not None:
        await registry.forget_everywhere(repository, named)
    else:
        registry.acknowledged.forget_tag(repository, reference)
    return Answer(202, _LEGACY, outcome="database")


async def _delete(
    registry: Registry, request: Request, repository: str, reference: str, digest: str | None, once: Once | None
) -> None:
    """Delete a manifest by its digest, or else a tag, unless another try has. Raises RegistryError, TagImmutable, RightsLapsed."""
    there, id_, held = False, None if once is None else once.id, _still(request, once)
    _check_end(registry, held)
    if digest is not None:
        note = registry.line(request, "deleteManifest", repository, digest=digest)
        there = await delete_manifest(registry.database, repository, digest, note, id_, held)
    elif is_tag(reference):
        note = registry.line(request, "deleteTag", repository, tag=reference)
        there = await delete_tag(registry.database, repository, reference, note, id_, held) is not None
    if there:
        return
    # Also where a try that was waited for has deleted it, which the statement could not see.
    ended = None if id_ is None else await how_it_ended(registry.database, id_)
    if ended is None:
        raise RegistryError(MANIFEST_UNKNOWN, {"name": repository, "reference": reference[:160]})
    if not ended.done:
        raise RegistryError(REFUSED_BEFORE)


async def delete_blob(registry: Registry, request: Request, repository: str, digest_text: str) -> Answer:
    """Take a blob out of the repository (spec: end-10); 405 while a manifest there uses it. Raises RegistryError."""
    digest = str(check_digest(digest_text))
    note = registry.line(request, "deleteBlob", repository, digest=digest)
    outcome = await unlink_blob(registry.database, repository, digest, note)
    if outcome is Unlinking.UNKNOWN:
        raise RegistryError(BLOB_UNKNOWN, {"name": repository, "digest": digest})
    if outcome is Unlinking.IN_USE:
        raise RegistryError(UNSUPPORTED, {"digest": digest, "reason": "a manifest of this repository uses the blob"})
    await registry.forget_everywhere(repository, digest)
    return Answer(202, _LEGACY, outcome="database")


async def _read_body(request: Request, most: int) -> bytes:
    announced = request.headers.get("content-length", "")
    if announced.isascii() and announced.isdigit() and int(announced) > most:
        raise RegistryError(MANIFEST_TOO_LARGE, {"limit": most, "found": int(announced)})
    chunks, size = [], 0
    while data := await request.body.receive():
        size += len(data)
        if size > most:
            raise RegistryError(MANIFEST_TOO_LARGE, {"limit": most, "reason": "longer than the limit"})
        chunks.append(data)
    return b"".join(chunks)


def _digest_of(body: bytes, named: Digest | None) -> str:
    algorithm = "sha256" if named is None else named.algorithm
    found = f"{algorithm}:{hashlib.new(algorithm, body).hexdigest()}"
    if named is not None and found != str(named):
        raise RegistryError(DIGEST_INVALID, {"digest": str(named), "found": found})
    return found
