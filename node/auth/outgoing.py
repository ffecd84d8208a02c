"""Asks an identity provider over HTTP: only https, to addresses that may be, no redirects, within a deadline and a size."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpcore
import trio
from attrs import field, frozen

from engines.tls_trust import trusting
from node.answers import Headers
from node.hooks.addresses import Network, networks, refuse_url
from node.hooks.network import Checked, Refused

ANYWHERE = networks(("0.0.0.0/0", "::/0"))
"""For what an operator named."""
_SECONDS = 5.0
_MOST = 256 * 1024
_LOOKUPS = trio.CapacityLimiter(8)
"""Threads that look up names of identity providers: no tenant's webhook keeps a login waiting."""


class NoAnswer(Exception):
    """Nothing usable came back; the text says why, for the log."""


@frozen
class Reply:
    """What a provider answered; the JSON object in it, empty where there is none."""

    status: int
    document: Mapping[str, Any] = field(repr=False)


@frozen
class Outgoing:
    """Where requests may go (besides public addresses), and who may vouch for servers: a PEM file; None: the system's."""

    allowed: Sequence[Network]
    authorities: Path | None

    async def ask(self, url: str, form: Mapping[str, str] | None = None, headers: Headers = ()) -> Reply:
        """Return the answer to a GET, or, with a form, to a POST. Raises NoAnswer."""
        reason = refuse_url(url, self.allowed)
        if reason is None and urlsplit(url).scheme != "https":
            reason = f"{url[:200]} is no https URL"
        if reason is not None:
            raise NoAnswer(reason)
        try:
            with trio.fail_after(_SECONDS):
                return await self._ask(url, form, headers)
        except trio.TooSlowError:
            raise NoAnswer(f"no answer within {_SECONDS:g} s") from None
        except (Refused, ValueError, OSError) as error:
            raise NoAnswer(str(error) or type(error).__name__) from error
        except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError) as error:
            raise NoAnswer(f"{type(error).__name__}: {error}") from error

    async def _ask(self, url: str, form: Mapping[str, str] | None, headers: Headers) -> Reply:
        pool = httpcore.AsyncConnectionPool(
            ssl_context=trusting(self.authorities),
            max_connections=1,
            max_keepalive_connections=0,
            network_backend=Checked(self.allowed, _LOOKUPS),
        )
        timeouts = dict.fromkeys(("connect", "read", "write", "pool"), _SECONDS)
        sent = [("accept", "application/json"), ("connection", "close"), *headers]
        content = None
        if form is not None:
            content = urlencode(form).encode()
            sent.append(("content-type", "application/x-www-form-urlencoded"))
        method, body = "GET" if form is None else "POST", b""
        extensions = {"timeout": timeouts}
        with trio.CancelScope() as reading:
            async with pool, pool.stream(method, url, headers=sent, content=content, extensions=extensions) as answer:
                async for data in answer.aiter_stream():
                    body += data
                    if len(body) > _MOST:
                        # Not by leaving the loop: httpcore's generators end in order only where they wait.
                        reading.cancel()
        if len(body) > _MOST:
            raise Refused(f"its answer is longer than {_MOST} bytes")
        return Reply(answer.status, read_object(body, answer.status))


def read_object(body: bytes, status: int) -> Mapping[str, Any]:
    """Return the JSON object of an answer; without one an empty mapping where the status says that it failed anyway.

    Raises NoAnswer.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    if isinstance(document, dict):
        return document
    if status == 200:
        raise NoAnswer("its answer is no JSON object")
    return {}
