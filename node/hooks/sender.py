"""Sends one message to a URL that somebody else has chosen: to a checked address, within a deadline, and it believes nothing.

`node/hooks/network.py` checks where it goes. Redirects are not followed, no proxy is used, and of the answer only the status
counts.
"""

import ssl
from collections.abc import Sequence
from pathlib import Path

import httpcore
import trio
from attrs import frozen

from engines.tls_trust import trusting
from node.hooks.addresses import Network
from node.hooks.message import Message
from node.hooks.network import Checked, Refused


@frozen
class Outcome:
    """What became of a delivery: taken, or why not."""

    taken: bool
    reason: str = ""


async def send(
    url: str,
    message: Message,
    *,
    allowed: Sequence[Network],
    deadline: float,
    agent: str,
    authorities: Path | None,
) -> Outcome:
    """POST a message; taken is what is answered 2xx within `deadline` seconds. Raises nothing but cancellation.

    `authorities` is a PEM file with those that may vouch for an https URL, None for the system's.
    """
    with trio.move_on_after(deadline):
        try:
            return await _send(url, message, Checked(allowed), deadline, agent, authorities)
        except Refused as error:
            return Outcome(False, str(error))
        except (OSError, UnicodeError) as error:
            return Outcome(False, f"the name cannot be looked up: {error}"[:300])
        except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, ssl.SSLError) as error:
            return Outcome(False, _why(error)[:300])
    return Outcome(False, f"no answer within {deadline:g} seconds")


def _why(error: BaseException) -> str:
    """Return what an operator can act on: where the layers above say nothing, the first below that does."""
    inner: BaseException | None = error
    while inner is not None and not str(inner):
        inner = inner.__cause__ or inner.__context__
    return f"{type(error).__name__}: {inner or ''}"


async def _send(
    url: str, message: Message, network: Checked, deadline: float, agent: str, authorities: Path | None
) -> Outcome:
    headers: list[tuple[bytes | str, bytes | str]] = [
        *message.headers.items(),
        ("user-agent", agent),
        ("connection", "close"),
    ]
    timeouts = dict.fromkeys(("connect", "read", "write", "pool"), deadline)
    pool = httpcore.AsyncConnectionPool(
        ssl_context=trusting(authorities),
        max_connections=1,
        max_keepalive_connections=0,
        network_backend=network,
    )
    async with (
        pool,
        pool.stream("POST", url, headers=headers, content=message.body, extensions={"timeout": timeouts}) as answer,
    ):
        # The body is not read: nobody needs it, and it could be without end.
        if 200 <= answer.status <= 299:
            return Outcome(True)
        return Outcome(False, f"it answered {answer.status}")
