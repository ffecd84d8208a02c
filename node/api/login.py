"""People who log in with an identity provider, by the API: begun, then asked for until they have, or the browser comes back."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from node.api.frame import Json, Problem, timestamp
from node.api.tags import Means
from node.auth.access import Access
from node.auth.directory import DirectoryUnavailable
from node.auth.id_token import is_subject
from node.auth.provider import LoginRefused, Pending
from node.auth.sign_in import Begun, SignIn
from node.config.settings import Settings
from node.records.accounts import find_account
from node.records.federated_logins import Link, add_link, list_links, remove_link

_RETRY = (("retry-after", "5"),)


async def get_ways(access: Access, settings: Settings) -> Json:
    """Return how people log in: by a password, or with which provider. Raises Problem (503)."""
    signs = None if access.parts is None else access.parts.sign_in
    if signs is None:
        kind = "none" if access.parts is None else settings.authentication_type
        return {"authentication": kind, "service": None, "device": False, "code": False}
    async with _asked():
        device = await signs.provider.has_devices()
    return {"authentication": "OIDC", "service": signs.provider.settings.service_name, "device": device, "code": True}


async def begin_device(access: Access, address: str) -> Json:
    """Begin a login that is finished in a browser anywhere. Raises Problem: 403, 404, 503; RegistryError (429)."""
    signs = _signs(access)
    async with _asked():
        return _begun(await signs.begin_device(address))


async def begin_code(access: Access, body: Mapping[str, str], address: str) -> Json:
    """Begin a login in a browser of the client's machine. Raises Problem: 403, 404, 503; RegistryError (429)."""
    signs = _signs(access)
    async with _asked():
        return _begun(await signs.begin_code(body["redirect_uri"], body["code_challenge"], body["state"], address))


async def finish(access: Access, body: Mapping[str, str], address: str) -> Json:
    """Return who has logged in with their application token, or that nobody has yet. Raises as `begin_code`."""
    signs = _signs(access)
    title = body.get("title", "login")
    async with _asked():
        done = await signs.finish(body["handle"], body.get("code"), body.get("code_verifier"), title, address)
    if isinstance(done, Pending):
        return {
            "status": "pending",
            "slower": done.slower,
            "account": None,
            "id": None,
            "secret": None,
            "expires": None,
        }
    return {
        "status": "done",
        "slower": False,
        "account": done.account.name,
        "id": str(done.token.id),
        "secret": done.secret,
        "expires": timestamp(done.token.expires_at),
    }


async def get_links(means: Means, name: str) -> Json:
    """Return whom of identity providers an account belongs to."""
    return {"links": [_link(link) for link in await list_links(means.database, name)]}


async def set_link(means: Means, access: Access, name: str, subject: str) -> Json:
    """Let the provider's person of this subject have a user's account. Raises Problem: 400, 404, 409, 503."""
    if not is_subject(subject):
        raise Problem(400, "a subject that cannot be used", "write what the provider's tokens have in sub")
    signs = _signs(access)
    async with _asked():
        issuer = await signs.provider.issuer()
    return await link_to(means, name, issuer, subject)


async def link_to(means: Means, name: str, issuer: str, subject: str) -> Json:
    """Let an issuer's person have a user's account. Raises Problem: 404, 409."""
    made = await add_link(means.database, name, issuer, subject)
    if made is not None:
        return _link(made)
    if await find_account(means.database, name) is None:
        raise Problem(404, "no such user", name[:255])
    raise Problem(409, "it cannot be linked", f"{name[:255]} is no user, or the subject has another account")


async def drop_link(means: Means, name: str, issuer: str, subject: str) -> Json:
    """Take a user's account from an issuer's person. Raises Problem (404)."""
    if not await remove_link(means.database, name, issuer, subject):
        raise Problem(404, "no such link", f"{name[:255]} is not linked with {subject[:255]}")
    return {"account": name, "issuer": issuer, "subject": subject, "deleted": True}


def _signs(access: Access) -> SignIn:
    if access.parts is None or access.parts.sign_in is None:
        raise Problem(
            404, "no login with an identity provider", "this registry has AUTHENTICATION_TYPE other than OIDC"
        )
    return access.parts.sign_in


@asynccontextmanager
async def _asked() -> AsyncIterator[None]:
    """Make problems of what an identity provider answers, or does not."""
    try:
        yield
    except LoginRefused as error:
        raise Problem(403, "the login failed", str(error)) from None
    except DirectoryUnavailable:
        detail = "nobody can log in anew just now; tokens that were given before go on working"
        raise Problem(503, "the identity provider cannot be asked", detail, headers=_RETRY) from None


def _begun(begun: Begun) -> Json:
    return {
        "handle": begun.handle,
        "uri": begun.uri,
        "complete_uri": begun.whole_uri,
        "user_code": begun.user_code,
        "expires_in": int(begun.lifetime),
        "interval": begun.interval,
    }


def _link(link: Link) -> Json:
    return {
        "account": link.account,
        "issuer": link.issuer,
        "subject": link.subject,
        "created": timestamp(link.created_at),
    }
