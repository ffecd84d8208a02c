"""Asks a registry over HTTP, as a client far away does: the one place of the command line that speaks it."""

import ipaddress
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import trio
from attrs import field, frozen

from node.config.values import Unfit, parse_host
from node.names import is_name, is_tag
from replication.digests import BadDigest, Digest

_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 15.0
"""How long an answer may take beyond what the request itself asks to be kept waiting."""

_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses after which the same request may well be answered: by another node, or a little later."""

_RIGHT = "write host[:port]/name[:tag] or host[:port]/name@sha256:..., such as registry.example.com/team/app:v1"


@frozen
class Image:
    """An image as people name it: the registry's host with its port, the repository, and a tag or digest."""

    host: str
    name: str
    reference: str

    @classmethod
    def parse(cls, text: str) -> "Image":
        """Return what `host[:port]/name[:tag][@digest]` says. No tag means `latest`; a digest counts more. Raises Unfit."""
        host, slash, path = text.partition("/")
        # As docker tells them apart: what has neither a dot nor a port is the first part of a name on a registry that is not said.
        if not slash or not ("." in host or ":" in host or host == "localhost"):
            raise Unfit(f"the registry's host is missing: {_RIGHT}")
        parse_host(host)
        rest, at, digest = path.partition("@")
        found = re.fullmatch(r"([^:]+)(?::([^:/]+))?", rest)
        name, tag = (found[1], found[2] or "latest") if found else ("", "")
        reference = digest if at else tag
        if not is_name(name) or not (_is_digest(digest) if at else is_tag(tag)):
            raise Unfit(_RIGHT)
        return cls(host, name, reference)

    @property
    def loopback(self) -> bool:
        """Whether the registry is on this very machine."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Tell whether a host, perhaps with a port, is this very machine."""
    name = parse_host(host)[0]
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class Unreachable(Exception):
    """No usable answer came, and the same question may well get one. `retry_after` in seconds, None if nobody said."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class Refused(Exception):
    """The registry answered that it will not, or does not know; asking again changes nothing."""


@frozen
class RegistryClient:
    """One registry. Any of its nodes may answer any request."""

    _http: httpx.AsyncClient = field(alias="http")

    async def replication(
        self, image: Image, reference: str, location: str, *, wait: float, referrers: bool, request: bool
    ) -> Mapping[str, Any]:
        """Return the wait API's answer about `reference` in a location, which the registry may take `wait` seconds for.

        Raises Unreachable, Refused.
        """
        path = f"/api/v1/repository/{image.name}/manifest/{reference}/replication"
        query = {
            "location": location,
            "wait": f"{max(0.0, wait):.3f}",
            "referrers": str(referrers).lower(),
            "request": str(request).lower(),
        }
        limit = wait + _ANSWER_SECONDS
        try:
            with trio.fail_after(limit + _CONNECT_SECONDS):
                timeout = httpx.Timeout(limit, connect=_CONNECT_SECONDS)
                answer = await self._http.get(path, params=query, timeout=timeout)
        except (httpx.HTTPError, trio.TooSlowError) as error:
            raise Unreachable(f"{type(error).__name__}: {error}".rstrip(": ")) from error
        return _document(answer)


@asynccontextmanager
async def open_registry(image: Image, login: httpx.Auth | None, *, plain_http: bool) -> AsyncIterator[RegistryClient]:
    """Open a client of an image's registry: HTTPS, but HTTP on this very machine or where `plain_http` says so.

    `login` is what every request shows (`node.commands.login`).

    Proxies and certificates are as the environment says, except on this very machine.
    """
    scheme = "http" if plain_http or image.loopback else "https"
    async with httpx.AsyncClient(
        base_url=f"{scheme}://{image.host}",
        auth=login,
        trust_env=not image.loopback,
        # Answers are small; a proxy that compresses them would only hold them back.
        headers={"accept": "application/json", "accept-encoding": "identity"},
    ) as http:
        yield RegistryClient(http)


def _document(answer: httpx.Response) -> Mapping[str, Any]:
    try:
        document = answer.json()
    except ValueError:
        document = None
    problem = document if isinstance(document, dict) else {}
    if answer.status_code == httpx.codes.OK and {"status", "digest"} <= problem.keys():
        return problem
    said = problem.get("detail") or problem.get("title") or answer.reason_phrase
    if answer.status_code in _PASSING:
        after = answer.headers.get("retry-after", "")
        raise Unreachable(f"{answer.status_code} {said}", float(after) if after.isdigit() else None)
    if answer.status_code == httpx.codes.OK:
        raise Refused("it has no wait API: its answer is none of a registry of this kind")
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        said = f"{said}; log in with antipode login or docker login, or give --username or $ANTIPODE_TOKEN"
    raise Refused(f"{answer.status_code} {said}")


def _is_digest(text: str) -> bool:
    try:
        Digest.parse(text)
    except BadDigest:
        return False
    return True
