"""Repositories and their tags: listed, looked at, made public or private, a tag deleted."""

from collections.abc import Sequence

from node.api.frame import Json, Problem, timestamp
from node.api.tags import Means
from node.records.manifests import delete_tag
from node.records.permissions import set_visibility
from node.records.repositories import (
    RepositoryLine,
    find_repository_line,
    list_repository_lines,
    list_tag_lines,
)
from replication.ports import Forget


async def get_repositories(means: Means, namespace: str | None, after: str, most: int) -> Json:
    """Return a page of repositories by name; `next` is the `after` of the next page."""
    found: Sequence[RepositoryLine] = await list_repository_lines(means.database, namespace, after, most + 1)
    page = found[:most]
    return {"repositories": [_line(line) for line in page], "next": page[-1].name if len(found) > most else None}


async def get_repository(means: Means, name: str) -> Json:
    """Return a repository. Raises Problem (404)."""
    found = await find_repository_line(means.database, name)
    if found is None:
        raise Problem(404, "no such repository", name[:255])
    return _line(found)


async def publish_repository(means: Means, name: str, *, public: bool) -> Json:
    """Make a repository public (anybody may pull) or private. Raises Problem (404)."""
    if not await set_visibility(means.database, name, public=public):
        raise Problem(404, "no such repository", name[:255])
    return await get_repository(means, name)


async def get_tags(means: Means, name: str, after: str, most: int) -> Json:
    """Return a page of a repository's tags by name. Raises Problem (404)."""
    found = await list_tag_lines(means.database, name, after, most + 1)
    if found is None:
        raise Problem(404, "no such repository", name[:255])
    page = found[:most]
    return {
        "name": name,
        "tags": [
            {
                "name": line.name,
                "digest": line.digest,
                "media_type": line.media_type,
                "size": line.size,
                "since": timestamp(line.since),
                "immutable": line.immutable,
            }
            for line in page
        ],
        "next": page[-1].name if len(found) > most else None,
    }


async def remove_tag(means: Means, name: str, tag: str) -> Json:
    """Delete a tag; its history remembers it. Raises Problem (404)."""
    digest = await delete_tag(means.database, name, tag)
    if digest is None:
        raise Problem(404, "no such tag", f"{name[:255]} has no tag {tag[:128]}")
    means.publish(Forget(name, digest))
    return {"name": name, "tag": tag, "digest": digest, "deleted": True}


def _line(line: RepositoryLine) -> Json:
    return {"name": line.name, "public": line.public, "created": timestamp(line.created), "tags": line.tags}
