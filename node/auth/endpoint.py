"""The token endpoint, `/v2/auth`: who somebody is, in return for a token that says it with what they may do.

Sources: the Docker Registry v2 token authentication specification (GET) and its OAuth2 companion (POST). What clients really send:
Basic or nothing with GET, scopes repeated or joined with spaces, `offline_token=true` at a login; `password` and `refresh_token`
forms with POST.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from urllib.parse import parse_qs

from attrs import frozen

from node.answers import Answer, Request
from node.auth.access import Access
from node.auth.challenge import basic, not_proven
from node.auth.credentials import NotProven, Proven
from node.auth.header import Basic, Malformed, read_authorization
from node.auth.model import ANONYMOUS, Grant
from node.auth.parts import Parts
from node.auth.scopes import Asked, narrow, read_scopes, words_of
from node.auth.tokens import BadToken, Renewal
from node.config.settings import Settings
from node.errors import UNAVAILABLE, UNSUPPORTED, Code, RegistryError
from node.gates import Gate

_MOST_FORM = 64 * 1024
_OAUTH = Code("UNSUPPORTED", 400, "the token request cannot be read")


@frozen
class _Wanted:
    """What a request for a token says besides who asks."""

    asked: Asked
    offline: bool = False


async def answer_token(access: Access, settings: Settings, gate: Gate, request: Request, who: str) -> Answer:
    """Answer a request for a token. Raises RegistryError: 401 for credentials that are not good, 429, 400, 405 for other methods.

    A token has what was asked for and may be had, which may be nothing. As many are worked on at once as come through `gate`, where
    nobody stands whose form is still on its way; `who` takes a place there.
    """
    parts = access.parts
    if parts is None or request.method not in ("GET", "HEAD", "POST"):
        raise RegistryError(UNSUPPORTED, {"method": request.method}, headers=(("allow", "GET, HEAD, POST"),))
    try:
        if request.method == "POST":
            form = await _form(request)
            async with gate.enter(who):
                return await _post(parts, settings, request.client, form)
        wanted = _Wanted(read_scopes(request.query.get("scope", ())), request.one("offline_token") == "true")
        async with gate.enter(who):
            return await _answer(parts, settings, await _basic(parts, request), wanted)
    except (NotProven, Malformed):
        raise not_proven(basic(settings.server_hostname), settings) from None


async def _basic(parts: Parts, request: Request) -> Proven | None:
    header = request.headers.get("authorization")
    if header is None:
        return None
    given = read_authorization(header)
    if not isinstance(given, Basic):
        raise Malformed("Basic is needed here")
    return await parts.credentials.check(given.name, given.password, request.client)


async def _post(parts: Parts, settings: Settings, client: str, form: Mapping[str, Sequence[str]]) -> Answer:
    wanted = _Wanted(
        read_scopes(form.get("scope", ())),
        _one(form, "access_type") == "offline" or _one(form, "offline_token") == "true",
    )
    match _one(form, "grant_type"):
        case "password":
            proven = await parts.credentials.check(_one(form, "username"), _one(form, "password"), client)
            return await _answer(parts, settings, proven, wanted)
        case "refresh_token":
            token = _one(form, "refresh_token")
            try:
                renewal = await parts.tokens.verify_refresh(token)
            except BadToken:
                raise NotProven from None
            proven = await parts.credentials.renew(renewal, token)
            return await _answer(parts, settings, proven, wanted, refresh_token=token)
    raise RegistryError(_OAUTH, {"grant_type": "write password or refresh_token"})


async def _answer(
    parts: Parts, settings: Settings, proven: Proven | None, wanted: _Wanted, refresh_token: str | None = None
) -> Answer:
    if proven is None and not settings.anonymous_access:
        raise NotProven
    identity = ANONYMOUS if proven is None else proven.identity
    asked = wanted.asked
    decided = await parts.rights.of(identity, tuple(asked.repositories))
    grants = {name: narrow(actions, decided.grants[name]) for name, actions in asked.repositories.items()}
    epoch = (
        decided.epoch if proven is None else min(decided.epoch, parts.changes.known(proven.epoch, identity.name, ()))
    )
    lifetime, now = int(settings.token_lifetime), parts.credentials.now()
    if proven is not None and proven.ends is not None:
        lifetime = max(1, min(lifetime, int(proven.ends - now)))
    try:
        token = parts.tokens.issue(identity, grants, epoch, lifetime, catalog=asked.catalog)
        if proven is not None and proven.renewable and wanted.offline and refresh_token is None:
            refresh_token = _refresh(parts, settings, proven, now)
    except BadToken as error:
        raise RegistryError(UNAVAILABLE, {"reason": str(error)}, retry_after=5) from error
    document: dict[str, object] = {
        "token": token,
        "access_token": token,
        "expires_in": lifetime,
        "issued_at": datetime.fromtimestamp(int(now), UTC).isoformat().replace("+00:00", "Z"),
        "scope": _scope(grants),
    }
    if refresh_token is not None:
        document["refresh_token"] = refresh_token
    headers = (("content-type", "application/json"), ("cache-control", "no-store"))
    return Answer(200, headers, json.dumps(document).encode(), outcome="token")


def _refresh(parts: Parts, settings: Settings, proven: Proven, now: float) -> str:
    lifetime = settings.refresh_token_lifetime
    if proven.ends is not None:
        lifetime = min(lifetime, proven.ends - now)
    renewal = Renewal(proven.identity.name, proven.generation, proven.token, proven.account)
    return parts.tokens.issue_refresh(renewal, max(1, lifetime))


def _scope(grants: Mapping[str, Grant]) -> str:
    return " ".join(f"repository:{name}:{','.join(words_of(grant.actions))}" for name, grant in grants.items())


async def _form(request: Request) -> Mapping[str, Sequence[str]]:
    """Return the form in the body. Raises RegistryError (400)."""
    body = b""
    while data := await request.body.receive():
        body += data
        if len(body) > _MOST_FORM:
            raise RegistryError(_OAUTH, {"reason": f"longer than {_MOST_FORM} bytes"})
    try:
        return parse_qs(body.decode(), keep_blank_values=True, max_num_fields=100, errors="strict")
    except ValueError:
        raise RegistryError(_OAUTH, {"reason": "the body must be a form"}) from None


def _one(form: Mapping[str, Sequence[str]], name: str) -> str:
    return next(iter(form.get(name, ())), "")
