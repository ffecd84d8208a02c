"""Tags over time: what they pointed to, restored within their window, how long that is; repositories and namespaces deleted.

Like Quay's time machine (DEFAULT_TAG_EXPIRATION, TAG_EXPIRATION_OPTIONS), without accounts.
"""

from collections.abc import Mapping

from attrs import frozen

from node.api.frame import Json, Parameters, Problem, timestamp
from node.config.settings import Settings
from node.config.values import Unfit, parse_duration, say_duration
from node.names import is_name, is_tag
from node.push.reading import read_manifest
from node.records.history import (
    TagState,
    find_former,
    find_lost_children,
    relink_closure,
    set_tag_expiration,
    tag_expiration,
    tag_history,
)
from node.records.manifests import CompiledTags, commit_manifest
from node.records.policies import load_policy
from node.records.postgres import Database
from node.records.removal import clear_namespace, delete_namespace, delete_repository
from replication.digests import BadDigest, Digest
from replication.ports import Forget, Publish, Wake

_PAGE = 50
_MOST = 500
_POLICY_TRIES = 5


@frozen
class Means:
    """What these functions work with: any node has them, and so has the command line."""

    database: Database
    settings: Settings
    publish: Publish


async def history_of(means: Means, name: str, tag: str, query: Mapping[str, tuple[str, ...]]) -> Json:
    """Return what a tag points to and pointed to, latest first, as far back as it can be restored.

    Parameters: `n`, entries of a page; `before`, POSIX seconds, for the next page (`next` of the one before). Raises Problem.
    """
    parameters = Parameters(query)
    most = parameters.optional("n", _read_count, _PAGE)
    before = parameters.optional("before", _read_time, None)
    parameters.check()
    _check(name, tag)
    found = await tag_history(means.database, name, tag, window=means.settings.tag_expiration, before=before, most=most)
    if found is None:
        raise _no_repository(name)
    if not found.states and before is None:
        raise Problem(404, "no such tag", f"{name} has no tag {tag}, and had none that could be restored")
    return {
        "name": name,
        "tag": tag,
        "history": [_state(state) for state in found.states],
        "next": found.states[-1].until if found.more else None,
    }


async def restore_tag(means: Means, name: str, tag: str, body: object) -> Json:
    """Point a tag to a manifest that it pointed to within its window: body `{"digest": "sha256:..."}`. Raises Problem.

    A manifest that was deleted by its digest is linked again, and so are blobs of it that were deleted: history has kept both. So
    are manifests of an index, while they have not been collected.
    """
    _check(name, tag)
    digest = _digest(body)
    settings = means.settings
    former = await find_former(means.database, name, tag, digest, settings.tag_expiration)
    if former is None:
        detail = f"{tag} of {name} did not point to {digest}, or longer ago than it can be restored"
        raise Problem(404, "nothing to restore", detail)
    facts = read_manifest(former.body, former.media_type, digest)
    children = await _lost_children(means.database, name, digest) if facts.children else {}
    await relink_closure(means.database, name, digest, children, replicate=settings.replicate)
    version, text = 0, None
    for _ in range(_POLICY_TRIES):
        places = tuple((tag, at) for at in sorted(load_policy(text).for_tag(tag))) if settings.replicate else ()
        committed = await commit_manifest(
            means.database,
            name,
            settings.library_namespace,
            facts,
            CompiledTags((tag,), version, places),
            sparse=settings.sparse_index,
            default_quota=settings.default_quota,
        )
        if committed.missing:
            detail = f"{len(committed.missing)} of the things that {digest} names were deleted by hand and are gone"
            raise Problem(409, "it cannot be restored whole", detail, more={"missing": list(committed.missing)})
        if not committed.stale:
            means.publish(*(Forget(name, one) for one in (digest, *children)), Wake())
            return {"name": name, "tag": tag, "digest": digest}
        version, text = committed.version, committed.policy
    raise Problem(503, "the namespace's policy keeps changing", headers=(("retry-after", "1"),))


async def _lost_children(database: Database, name: str, digest: str) -> Mapping[str, str]:
    """Return the media types, by digest, of manifests that can come back with an index: those whose blobs are all still known."""
    found = {}
    for child in await find_lost_children(database, name, digest):
        facts = read_manifest(child.body, None, child.digest)
        if child.blobs.issuperset(facts.blobs):
            found[child.digest] = facts.media_type
    return found


async def expiration_of(means: Means, namespace: str) -> Json:
    """Return how long deleted and moved tags of a namespace can be restored. Raises Problem."""
    there, own = await tag_expiration(means.database, namespace)
    if not there:
        raise Problem(404, "no such namespace", namespace[:255])
    seconds = means.settings.tag_expiration if own is None else own
    return {
        "namespace": namespace,
        "tag_expiration": say_duration(seconds),
        "own": own is not None,
        "options": [say_duration(option) for option in means.settings.tag_expiration_options],
    }


async def set_expiration(means: Means, namespace: str, body: object) -> Json:
    """Set it: body `{"tag_expiration": "1w"}`, one of TAG_EXPIRATION_OPTIONS, or null for the usual one. Raises Problem."""
    if not isinstance(body, dict) or set(body) != {"tag_expiration"}:
        raise Problem(400, "a body that cannot be used", 'send {"tag_expiration": "1w"}, or null for the usual window')
    wanted = body["tag_expiration"]
    seconds = None
    if wanted is not None:
        options = means.settings.tag_expiration_options
        try:
            seconds = parse_duration(wanted)
        except Unfit as error:
            raise Problem(400, "a body that cannot be used", f"tag_expiration: {error}") from None
        if seconds not in options:
            right = ", ".join(map(say_duration, options))
            raise Problem(400, "a window that is not offered", f"TAG_EXPIRATION_OPTIONS has {right}")
    if not is_name(namespace) or "/" in namespace:
        raise Problem(400, "not a namespace", f"{namespace[:100]!r}: the first part of a repository's name is needed")
    await set_tag_expiration(means.database, namespace, seconds)
    return await expiration_of(means, namespace)


async def remove_repository(means: Means, name: str) -> Json:
    """Delete a repository with its tags and their history. Its bytes go as all garbage does. Raises Problem."""
    if not is_name(name) or not await delete_repository(means.database, name):
        raise _no_repository(name)
    means.publish(Forget(name))
    return {"name": name, "deleted": True}


async def remove_namespace(means: Means, namespace: str, *, whole: bool = True) -> Json:
    """Delete a namespace with all its repositories; `whole`: also what superusers have set, policy and quota. Raises Problem."""
    deleted = await (delete_namespace if whole else clear_namespace)(means.database, namespace)
    if deleted is None:
        raise Problem(404, "no such namespace", namespace[:255])
    means.publish(Forget())
    return {"namespace": namespace, "repositories": deleted, "deleted": True}


def _state(state: TagState) -> Json:
    return {
        "digest": state.digest,
        "since": timestamp(state.since),
        "until": timestamp(state.until),
        "restorable_until": timestamp(state.restorable_until),
    }


def _check(name: str, tag: str) -> None:
    if not is_name(name):
        raise _no_repository(name)
    if not is_tag(tag):
        raise Problem(404, "no such tag", tag[:160])


def _no_repository(name: str) -> Problem:
    return Problem(404, "no such repository", name[:255])


def _digest(body: object) -> str:
    if not isinstance(body, dict) or set(body) != {"digest"}:
        raise Problem(400, "a body that cannot be used", 'send {"digest": "sha256:..."}')
    try:
        return str(Digest.parse(str(body["digest"])))
    except BadDigest as error:
        raise Problem(400, "a body that cannot be used", f"digest: {error}") from None


def _read_count(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= _MOST:
        return int(text)
    raise Unfit(f"write a whole number from 1 to {_MOST}")


def _read_time(text: str) -> float | None:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if 0 <= seconds < 1e11:
        return seconds
    raise Unfit("write POSIX seconds, as `next` of the page before has them")
