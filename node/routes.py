"""Which operation of the registry a request is: the paths of the distribution spec, and one function per endpoint."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import lru_cache

import trio
from attrs import evolve, frozen

from node.answers import Answer, Asker, Lasting, Request
from node.auth.challenge import TOKEN_PATH
from node.auth.endpoint import answer_token
from node.auth.held import Held
from node.auth.model import Action, Identity
from node.auth.scopes import CATALOG, Need
from node.cache import Cache
from node.errors import DENIED, NOT_FOUND, UNSUPPORTED, RegistryError
from node.modes import Change, check_change
from node.names import check_name, is_name
from node.pull.blobs import answer_blob, blob_at_once
from node.pull.lasting import Decided
from node.pull.listings import answer_catalog, answer_referrers, answer_tags
from node.pull.manifests import answer_manifest, manifest_at_once
from node.push.manifests import delete_blob, delete_reference, put_manifest
from node.push.uploads import Uploads
from node.records.quotas import OverQuota
from node.records.rights import RightsLapsed
from node.records.uploads import TooManyUploads
from node.registry import Registry
from node.web.cross_site import is_foreign, shows_token

Endpoint = Callable[[Request, str, str], Awaitable[Answer]]
"""Takes the request, the repository's name and the last part of the path."""

_OK = 200
_LAST = frozenset({"blobs", "manifests", "referrers"})
"""What stands before the last part of a path, which says which one of the repository's."""


_AT_ONCE: Mapping[str, Callable[[Registry, Request, str, str], Decided | None]] = {
    "blobs": blob_at_once,
    "manifests": manifest_at_once,
}
"""What answers from memory alone, if it can; a tag is always asked for."""

_PULL, _PUSH, _DELETE = (Action.PULL,), (Action.PULL, Action.PUSH), (Action.DELETE,)
"""What requests need: what clients ask a token for, and last what the request itself does."""
_NEEDS = {"GET": _PULL, "HEAD": _PULL, "DELETE": _DELETE}
_MOST_MADE = 10_000


@frozen
class About:
    """What a path is about: a kind of thing of a repository, and the last part of the path."""

    kind: str
    """`uploads`, `blobs`, `manifests`, `tags` or `referrers`."""
    name: str
    """As it stands there, which may be no name at all."""
    last: str


def about_of(path: str) -> About | None:
    """Return which kind of thing of which repository a path is about; None where it is no endpoint.

    A name may have components that are words of these paths, so they are read from the end.
    """
    return _kept_about(path) if len(path) <= _KEPT_MOST else _about(path)


def _about(path: str) -> About | None:
    above, _, last = path.rpartition("/")
    name, _, kind = above.rpartition("/")
    if kind == "uploads":
        name, _, blobs = name.rpartition("/")
        known = blobs == "blobs"
    else:
        known = (kind in _LAST and last != "") or (kind == "tags" and last == "list")
    if not known or not name.startswith("/v2/") or len(name) == len("/v2/"):
        return None
    return About(kind, name[len("/v2/") :], last)


_kept_about = lru_cache(maxsize=4096)(_about)
"""Many ask for the same things, which takes 0.1 us so and 0.9 to read."""
_KEPT_MOST = 512
"""Characters of a path that is remembered: with what is read from it 6 MiB at the very most, and 2 with usual ones."""


class Routes:
    """The registry as one function from requests to answers."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._uploads = Uploads(registry)
        self._made: Cache[tuple[str, str], int] = Cache(_MOST_MADE)
        """(account, repository) that this node has made, or found made, for a token that may make it, to that token's epoch.

        Should it go again, tokens count that are of a later epoch.
        """
        pull_blob, pull_manifest = self._pull_blob, self._pull_manifest
        self._table: dict[str, dict[str, Endpoint]] = {
            "uploads": {"POST": self._post, "GET": self._uploads.get, "PATCH": self._uploads.patch, "PUT": self._uploads.put,
                        "DELETE": self._cancel},
            "blobs": {"GET": pull_blob, "HEAD": pull_blob, "DELETE": self._delete_blob},
            "manifests": {"GET": pull_manifest, "HEAD": pull_manifest, "PUT": self._put_manifest, "DELETE": self._delete},
            "tags": {"GET": self._tags, "HEAD": self._tags},
            "referrers": {"GET": self._referrers, "HEAD": self._referrers},
        }  # fmt: skip

    async def answer(self, request: Request) -> Answer:
        """Answer a request under /v2. Raises RegistryError, and what the parts raise when they are out of reach."""
        path = request.path
        if path in ("/v2", "/v2/"):
            self._only(request, "GET", "HEAD")
            await self._known(request)
            headers = (("content-type", "application/json"), ("docker-distribution-api-version", "registry/2.0"))
            return Answer(200, headers, b"{}", outcome="memory")
        if path == TOKEN_PATH:
            registry = self._registry
            # As nobody has said yet who they are, addresses share.
            who = registry.sources.of(request.client)
            return await answer_token(registry.access, registry.settings, registry.gates.tokens, request, who)
        if path == "/v2/_catalog":
            self._only(request, "GET", "HEAD")
            return await answer_catalog(self._registry, request, await self._known(request, CATALOG))
        about = about_of(path)
        if about is None:
            raise RegistryError(NOT_FOUND, {"path": path[:300]})
        endpoints = self._table[about.kind]
        self._only(request, *endpoints)
        return await self._answer_about(request, endpoints[request.method], about)

    def at_once(self, request: Request) -> Lasting | None:
        """Answer a pull that neither its sender's rights nor its answer need to be waited for: nearly every one of a warm image.

        None: `answer` answers. Nothing else is decided here than there, but straight on: a warm redirect takes 33 us of Python
        in all and not 49, a manifest 28 and not 36. Raises what `answer` does.
        """
        about, registry = about_of(request.path), self._registry
        decide = None if about is None else _AT_ONCE.get(about.kind)
        if about is None or decide is None or request.method not in ("GET", "HEAD") or ":" not in about.last:
            return None
        if not registry.gates.pulls.free:
            return None
        name, last, access, pulls = about.name, about.last, registry.access, registry.gates.pulls
        identity = access.puller_at_once(request.headers.get("authorization"), name)
        ground = registry.ground(registry.now())
        decided = None if identity is None else decide(registry, request, name, last)
        if identity is None or decided is None:
            return None
        method, path, audited = request.method, request.path, request.method == "GET" and about.kind == "manifests"
        if audited and decided.answer.status == _OK:
            registry.auditlog.pulled(evolve(request, who=identity.name), name, last, last)
        until, renewed, condition, get = decided.until, decided.renewed, decided.condition, decided.body

        def again(asker: Asker, request_id: str, now: float) -> bytes | None:
            nonlocal until
            headers = asker.headers
            if registry.ground(now) is not ground or condition in headers or not pulls.free:
                return None
            if now >= until and now >= (until := renewed(now)):
                return None
            identity = access.puller_at_once(headers.get("authorization"), name)
            body = None if identity is None else get()
            if audited and identity is not None and body is not None:
                asked = Request(method, path, headers=headers, client=asker.client, id=request_id, who=identity.name)
                registry.auditlog.pulled(asked, name, last, last)
            return body

        return Lasting(decided.answer, again)

    async def _answer_about(self, request: Request, endpoint: Endpoint, about: About) -> Answer:
        """Answer a request about one repository, if its sender may."""
        name, last, gates = check_name(about.name), about.last, self._registry.gates
        if request.method not in ("GET", "HEAD") and not shows_token(request.headers) and is_foreign(request.headers):
            # A page may have a browser POST, with the password that it keeps for this registry: mount a blob that its reader may
            # see where the page's author sees it, too.
            raise RegistryError(DENIED, {"reason": "a page of another site asks"})
        need = Need(name, _PUSH if about.kind == "uploads" else _NEEDS.get(request.method, _PUSH))
        identity, held = await self._admitted(request, need)
        if identity.name:
            request = evolve(request, who=identity.name, held=held)
        if request.method not in ("GET", "HEAD"):
            deletes = request.method == "DELETE"
            check_change(self._registry.current(), Change.ADMINISTER if deletes else Change.PUSH)
        gate = gates.pulls if request.method in ("GET", "HEAD") else gates.pushes
        who = self._registry.sharer(request.who, request.client)
        if need.actions is not _PUSH:
            async with gate.enter(who):
                return await endpoint(request, name, last)
        async with self._ensured(identity, need):
            if endpoint == self._post and "mount" in request.query:
                request = await self._mountable(request, identity, need)
            if endpoint == self._put_manifest:
                # It leaves the gate by itself when it only waits for copies.
                return await endpoint(request, name, last)
            async with gate.enter(who):
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

    async def _admitted(self, request: Request, need: Need) -> tuple[Identity, Held | None]:
        """Return who sent a request, who may do what it needs, and by which rights. Raises RegistryError."""
        access = self._registry.access
        identity = await access.identify(request.headers.get("authorization"), request.client, (need,))
        return identity, await access.admit(identity, need)

    @asynccontextmanager
    async def _ensured(self, identity: Identity, need: Need) -> AsyncIterator[None]:
        """Make the repository that somebody pushes to, where their right is to make it; a refused push leaves none behind.

        Raises RegistryError.
        """
        access, key = self._registry.access, (identity.name, need.repository)
        known = self._made.get(key) if identity.grants is not None else None
        there = known is not None and known >= identity.epoch
        if there or not (await access.grant(identity, need.repository)).creates:
            yield
            return
        made = await access.make(identity, need)
        try:
            yield
        except (RegistryError, OverQuota, TooManyUploads):
            if made:
                await access.unmake(identity, need)
            raise
        self._made.keep(key, identity.epoch, trio.current_time())

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
        if not access.is_current(identity, source):
            # What was looked at so far is the repository that the request is sent to.
            raise access.lapsed(need, pull)
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
        answer = await answer_manifest(self._registry, request, name, last)
        self._note_pull(request, name, last, answer)
        return answer

    def _note_pull(self, request: Request, name: str, last: str, answer: Answer) -> None:
        if request.method == "GET" and answer.status == _OK:
            self._registry.auditlog.pulled(request, name, last, dict(answer.headers)["docker-content-digest"])

    async def _tags(self, request: Request, name: str, _last: str) -> Answer:
        return await answer_tags(self._registry, request, name)

    async def _referrers(self, request: Request, name: str, last: str) -> Answer:
        return await answer_referrers(self._registry, request, name, last)

    @contextmanager
    def _lapsing(self, need: Need) -> Iterator[None]:
        """Raise RegistryError where a request's rights turn out to have lapsed."""
        try:
            yield
        except RightsLapsed as error:
            raise self._registry.access.lapsed(need) from error

    async def _put_manifest(self, request: Request, name: str, last: str) -> Answer:
        with self._lapsing(Need(name, _PUSH)):
            return await put_manifest(self._registry, request, name, last)

    async def _delete(self, request: Request, name: str, last: str) -> Answer:
        with self._lapsing(Need(name, _DELETE)):
            return await delete_reference(self._registry, request, name, last)

    async def _delete_blob(self, request: Request, name: str, last: str) -> Answer:
        return await delete_blob(self._registry, request, name, last)

    async def _post(self, request: Request, name: str, last: str) -> Answer:
        if last:
            self._only(request, "GET", "PATCH", "PUT", "DELETE")
        return await self._uploads.post(request, name)

    async def _cancel(self, _request: Request, name: str, last: str) -> Answer:
        return await self._uploads.delete(name, last)
