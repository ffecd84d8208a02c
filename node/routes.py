"""Which operation of the registry a request is: the paths of the distribution spec, and one function per endpoint."""

import re
from collections.abc import Awaitable, Callable

import trio
from attrs import evolve

from node.answers import Answer, Request
from node.auth.challenge import TOKEN_PATH
from node.auth.endpoint import answer_token
from node.auth.model import Action, Identity
from node.auth.scopes import CATALOG, Need
from node.cache import Cache
from node.errors import NOT_FOUND, UNSUPPORTED, RegistryError
from node.modes import Change, check_change
from node.names import check_name, is_name
from node.pull.blobs import answer_blob
from node.pull.listings import answer_catalog, answer_referrers, answer_tags
from node.pull.manifests import answer_manifest
from node.push.manifests import delete_blob, delete_reference, put_manifest
from node.push.uploads import Uploads
from node.registry import Registry

Endpoint = Callable[[Request, str, str], Awaitable[Answer]]
"""Takes the request, the repository's name and the last part of the path."""

_UPLOAD = re.compile(r"/v2/(?P<name>.+)/blobs/uploads/(?P<last>[^/]*)")
_BLOB = re.compile(r"/v2/(?P<name>.+)/blobs/(?P<last>[^/]+)")
_MANIFEST = re.compile(r"/v2/(?P<name>.+)/manifests/(?P<last>[^/]+)")
_TAGS = re.compile(r"/v2/(?P<name>.+)/tags/(?P<last>list)")
_OK = 200
_REFERRERS = re.compile(r"/v2/(?P<name>.+)/referrers/(?P<last>[^/]+)")


_PULL, _PUSH, _DELETE = (Action.PULL,), (Action.PULL, Action.PUSH), (Action.DELETE,)
"""What requests need: what clients ask a token for, and last what the request itself does."""
_NEEDS = {"GET": _PULL, "HEAD": _PULL, "DELETE": _DELETE}
_MOST_MADE = 10_000


class Routes:
    """The registry as one function from requests to answers."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._uploads = Uploads(registry)
        self._made: Cache[tuple[str, str], bool] = Cache(_MOST_MADE)
        """(account, repository) that this node has made, or found made, for a token that may make it."""
        pull_blob, pull_manifest = self._pull_blob, self._pull_manifest
        self._table: tuple[tuple[re.Pattern[str], dict[str, Endpoint]], ...] = (
            (_UPLOAD, {"POST": self._post, "GET": self._uploads.get, "PATCH": self._uploads.patch, "PUT": self._uploads.put,
                       "DELETE": self._cancel}),
            (_BLOB, {"GET": pull_blob, "HEAD": pull_blob, "DELETE": self._delete_blob}),
            (_MANIFEST, {"GET": pull_manifest, "HEAD": pull_manifest, "PUT": self._put_manifest, "DELETE": self._delete}),
            (_TAGS, {"GET": self._tags, "HEAD": self._tags}),
            (_REFERRERS, {"GET": self._referrers, "HEAD": self._referrers}),
        )  # fmt: skip

    async def answer(self, request: Request) -> Answer:
        """Answer a request under /v2. Raises RegistryError, and what the parts raise when they are out of reach."""
        path = request.path
        if path in ("/v2", "/v2/"):
            self._only(request, "GET", "HEAD")
            await self._known(request)
            headers = (("content-type", "application/json"), ("docker-distribution-api-version", "registry/2.0"))
            return Answer(200, headers, b"{}", outcome="memory")
        if path == TOKEN_PATH:
            return await answer_token(self._registry.access, self._registry.settings, request)
        if path == "/v2/_catalog":
            self._only(request, "GET", "HEAD")
            return await answer_catalog(self._registry, request, await self._known(request, CATALOG))
        for pattern, endpoints in self._table:
            match = pattern.fullmatch(path)
            if match is not None:
                self._only(request, *endpoints)
                return await self._answer_about(request, endpoints[request.method], pattern, match)
        raise RegistryError(NOT_FOUND, {"path": path[:300]})

    async def _answer_about(
        self, request: Request, endpoint: Endpoint, pattern: re.Pattern[str], match: re.Match[str]
    ) -> Answer:
        """Answer a request about one repository, if its sender may."""
        name, last, gates = check_name(match["name"]), match["last"], self._registry.gates
        need = Need(name, _PUSH if pattern is _UPLOAD else _NEEDS.get(request.method, _PUSH))
        identity = await self._admitted(request, need)
        if identity.name:
            request = evolve(request, who=identity.name)
        if request.method not in ("GET", "HEAD"):
            deletes = request.method == "DELETE"
            check_change(self._registry.current(), Change.ADMINISTER if deletes else Change.PUSH)
        if need.actions is _PUSH:
            await self._ensure(identity, need)
        if endpoint == self._post and "mount" in request.query:
            request = await self._mountable(request, identity, need)
        if endpoint == self._put_manifest:
            # It leaves the gate by itself when it only waits for copies.
            return await endpoint(request, name, last)
        async with (gates.pulls if request.method in ("GET", "HEAD") else gates.pushes).enter():
            return await endpoint(request, name, last)

    async def _known(self, request: Request, *needs: Need) -> Identity:
        """Return who sent a request that is about no repository. Raises RegistryError (401) for nobody without a token.

        With `CATALOG` a token must be one for that.
        """
        access = self._registry.access
        identity = await access.identify(request.headers.get("authorization"), request.client, needs)
        if identity.everything:
            return identity
        if identity.anonymous if identity.grants is None else CATALOG in needs and not identity.catalog:
            raise access.refuse(identity, needs)
        return identity

    async def _admitted(self, request: Request, need: Need) -> Identity:
        """Return who sent a request, who may do what it needs. Raises RegistryError."""
        access = self._registry.access
        identity = await access.identify(request.headers.get("authorization"), request.client, (need,))
        await access.admit(identity, need)
        return identity

    async def _ensure(self, identity: Identity, need: Need) -> None:
        """Make the repository that somebody pushes to, where their right is to make it. Raises RegistryError."""
        access, key = self._registry.access, (identity.name, need.repository)
        if not (await access.grant(identity, need.repository)).creates or self._made.get(key):
            return
        if not await access.make(identity, need.repository):
            raise access.refuse(identity, (need,))
        self._made.keep(key, True, trio.current_time())

    async def _mountable(self, request: Request, identity: Identity, need: Need) -> Request:
        """Return a request to mount a blob as it is, or as one for an upload, where its sender may not pull from the source.

        A token that was never asked for the source is refused, so that the client asks for one. Raises RegistryError.
        """
        source = request.one("from")
        if source is None or not is_name(source):
            return request
        access, pull = self._registry.access, Need(source, _PULL)
        if identity.grants is not None and source not in identity.grants:
            raise access.refuse(identity, (need, pull))
        if await access.may(identity, Action.PULL, source):
            return request
        return evolve(
            request, query={name: held for name, held in request.query.items() if name not in ("mount", "from")}
        )

    def _only(self, request: Request, *methods: str) -> None:
        if request.method not in methods:
            detail = {"method": request.method, "reason": f"here only {', '.join(methods)}"}
            raise RegistryError(UNSUPPORTED, detail, headers=(("allow", ", ".join(methods)),))

    async def _pull_blob(self, request: Request, name: str, last: str) -> Answer:
        return await answer_blob(self._registry, request, name, last)

    async def _pull_manifest(self, request: Request, name: str, last: str) -> Answer:
        registry = self._registry
        answer = await answer_manifest(registry, request, name, last)
        if request.method == "GET" and answer.status == _OK:
            digest = dict(answer.headers).get("docker-content-digest")
            registry.auditlog.pulled(registry.line(request, "pull", name, reference=last, digest=digest))
        return answer

    async def _tags(self, request: Request, name: str, _last: str) -> Answer:
        return await answer_tags(self._registry, request, name)

    async def _referrers(self, request: Request, name: str, last: str) -> Answer:
        return await answer_referrers(self._registry, request, name, last)

    async def _put_manifest(self, request: Request, name: str, last: str) -> Answer:
        return await put_manifest(self._registry, request, name, last)

    async def _delete(self, request: Request, name: str, last: str) -> Answer:
        return await delete_reference(self._registry, request, name, last)

    async def _delete_blob(self, request: Request, name: str, last: str) -> Answer:
        return await delete_blob(self._registry, request, name, last)

    async def _post(self, request: Request, name: str, last: str) -> Answer:
        if last:
            self._only(request, "GET", "PATCH", "PUT", "DELETE")
        return await self._uploads.post(request, name)

    async def _cancel(self, _request: Request, name: str, last: str) -> Answer:
        return await self._uploads.delete(name, last)
