"""GET of lists: tags, the catalog, referrers; in pages with a Link to the next."""

import json
from urllib.parse import quote

from node.answers import Answer, Headers, Request
from node.auth.model import Identity
from node.errors import NAME_UNKNOWN, PAGINATION_INVALID, RegistryError
from node.names import check_digest
from node.records.listings import Referrer, list_referrers, list_repositories, list_tags
from node.registry import Registry

INDEX = "application/vnd.oci.image.index.v1+json"
_JSON: Headers = (("content-type", "application/json"), ("docker-distribution-api-version", "registry/2.0"))
_REFERRERS_PAGE = 500
"""Referrers per page, and fewer with long annotations: a page stays below the 4 MiB that clients take."""


async def answer_tags(registry: Registry, request: Request, repository: str) -> Answer:
    """Answer a repository's tags in byte order (spec: end-8). `last` is exclusive; `n=0` is an empty list without a Link."""
    most, after = _page_size(request, registry.settings.page_size), request.one("last") or ""
    page = await list_tags(registry.database, repository, after, most)
    if page is None:
        raise RegistryError(NAME_UNKNOWN, {"name": repository})
    link = _link(f"/v2/{repository}/tags/list", most, page.names) if page.more and most else ()
    return Answer(
        200, (*_JSON, *link), json.dumps({"name": repository, "tags": list(page.names)}).encode(), outcome="database"
    )


async def answer_catalog(registry: Registry, request: Request, identity: Identity) -> Answer:
    """Answer the names of the repositories that hold something and that somebody may pull (`_catalog`), in pages like tags."""
    most, after = _page_size(request, registry.settings.page_size), request.one("last") or ""
    reader = registry.access.reader(identity)
    page = await list_repositories(registry.database, after, most, reader)
    link = _link("/v2/_catalog", most, page.names) if page.more and most else ()
    return Answer(200, (*_JSON, *link), json.dumps({"repositories": list(page.names)}).encode(), outcome="database")


async def answer_referrers(registry: Registry, request: Request, repository: str, digest_text: str) -> Answer:
    """Answer what refers to a digest (spec: end-12): an index, empty where there is nothing, also for an unknown repository."""
    digest = str(check_digest(digest_text))
    kind = request.one("artifactType") or None
    most = min(_page_size(request, _REFERRERS_PAGE), _REFERRERS_PAGE) or _REFERRERS_PAGE
    page = await list_referrers(registry.database, repository, digest, kind, request.one("last") or "", most)
    headers: Headers = (("content-type", INDEX), ("docker-distribution-api-version", "registry/2.0"))
    if kind is not None:
        headers = (*headers, ("oci-filters-applied", "artifactType"))
    if page.more:
        query = f"last={page.referrers[-1].digest}&n={most}" + (f"&artifactType={quote(kind, safe='')}" if kind else "")
        headers = (*headers, ("link", f'</v2/{repository}/referrers/{digest}?{query}>; rel="next"'))
    listed = ", ".join(map(_descriptor, page.referrers))
    body = f'{{"schemaVersion": 2, "mediaType": "{INDEX}", "manifests": [{listed}]}}'
    return Answer(200, headers, body.encode(), outcome="database")


def _descriptor(referrer: Referrer) -> str:
    descriptor: dict[str, object] = {
        "mediaType": referrer.media_type,
        "digest": referrer.digest,
        "size": referrer.size,
    }
    if referrer.artifact_type is not None:
        descriptor["artifactType"] = referrer.artifact_type
    text = json.dumps(descriptor)
    return text if referrer.annotations is None else f'{text[:-1]}, "annotations": {referrer.annotations}}}'


def _page_size(request: Request, usual: int) -> int:
    """Return `n`, at most ten times the usual page (V2_PAGINATION_SIZE): a page may be shorter than asked (spec, 1.1.1)."""
    text = request.one("n")
    if text is None or text == "":
        return usual
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise RegistryError(PAGINATION_INVALID, {"n": text[:40], "reason": "a whole number from 0 on is needed"})
    return min(int(text), 10 * usual)


def _link(path: str, most: int, names: tuple[str, ...]) -> Headers:
    return (("link", f'<{path}?last={quote(names[-1], safe="")}&n={most}>; rel="next"'),)
