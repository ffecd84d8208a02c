"""Which operation of the registry a request is: the paths of the distribution spec, and one function per endpoint."""

import re
from collections.abc import Awaitable, Callable

from node.answers import Answer, Request
from node.errors import NOT_FOUND, UNSUPPORTED, RegistryError
from node.modes import Change, check_change
from node.names import check_name
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
_REFERRERS = re.compile(r"/v2/(?P<name>.+)/referrers/(?P<last>[^/]+)")


class Routes:
    """The registry as one function from requests to answers."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._uploads = Uploads(registry)
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
            headers = (("content-type", "application/json"), ("docker-distribution-api-version", "registry/2.0"))
            return Answer(200, headers, b"{}", outcome="memory")
        if path == "/v2/_catalog":
            self._only(request, "GET", "HEAD")
            return await answer_catalog(self._registry, request)
        for pattern, endpoints in self._table:
            match = pattern.fullmatch(path)
            if match is not None:
                self._only(request, *endpoints)
                endpoint, gates = endpoints[request.method], self._registry.gates
                if request.method not in ("GET", "HEAD"):
                    deletes = request.method == "DELETE"
                    check_change(self._registry.current(), Change.ADMINISTER if deletes else Change.PUSH)
                if endpoint == self._put_manifest:
                    # It leaves the gate by itself when it only waits for copies.
                    return await endpoint(request, check_name(match["name"]), match["last"])
                async with (gates.pulls if request.method in ("GET", "HEAD") else gates.pushes).enter():
                    return await endpoint(request, check_name(match["name"]), match["last"])
        raise RegistryError(NOT_FOUND, {"path": path[:300]})

    def _only(self, request: Request, *methods: str) -> None:
        if request.method not in methods:
            detail = {"method": request.method, "reason": f"here only {', '.join(methods)}"}
            raise RegistryError(UNSUPPORTED, detail, headers=(("allow", ", ".join(methods)),))

    async def _pull_blob(self, request: Request, name: str, last: str) -> Answer:
        return await answer_blob(self._registry, request, name, last)

    async def _pull_manifest(self, request: Request, name: str, last: str) -> Answer:
        return await answer_manifest(self._registry, request, name, last)

    async def _tags(self, request: Request, name: str, _last: str) -> Answer:
        return await answer_tags(self._registry, request, name)

    async def _referrers(self, request: Request, name: str, last: str) -> Answer:
        return await answer_referrers(self._registry, request, name, last)

    async def _put_manifest(self, request: Request, name: str, last: str) -> Answer:
        return await put_manifest(self._registry, request, name, last)

    async def _delete(self, _request: Request, name: str, last: str) -> Answer:
        return await delete_reference(self._registry, name, last)

    async def _delete_blob(self, _request: Request, name: str, last: str) -> Answer:
        return await delete_blob(self._registry, name, last)

    async def _post(self, request: Request, name: str, last: str) -> Answer:
        if last:
            self._only(request, "GET", "PATCH", "PUT", "DELETE")
        return await self._uploads.post(request, name)

    async def _cancel(self, _request: Request, name: str, last: str) -> Answer:
        return await self._uploads.delete(name, last)
