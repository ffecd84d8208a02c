"""Answers as values: what a request asks, what a response says, without knowing which edge carries them."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol, runtime_checkable

from attrs import Factory, field, frozen

from node.auth.held import Held
from replication.flow import Sink

Headers = tuple[tuple[str, str], ...]
"""Response headers in order. Names are lower case; values are latin-1 without control characters."""


class ClientGone(Exception):
    """The client closed its connection before the whole request body had come. Nobody is left to answer."""


class BodyStalled(Exception):
    """No byte of the request body came within the stall deadline."""


class RequestBody(Protocol):
    """The body of a request as it arrives, with back-pressure: what is not received is not read from the socket."""

    async def receive(self) -> bytes:
        """Return the next bytes in the sizes they come in, b"" at the end. Raises ClientGone or BodyStalled."""
        ...


class EmptyBody:
    """The body of a request that has none."""

    async def receive(self) -> bytes:
        """Return b"": there is nothing."""
        return b""


@frozen
class Request:
    """The facts of a request that answers may depend on.

    `path` is percent-decoded; `query` holds every value of every parameter, decoded, in order; header names are lower case and a
    repeated header is joined with ", " (RFC 9110 5.3).
    """

    method: str
    path: str
    query: Mapping[str, tuple[str, ...]] = Factory(dict)
    headers: Mapping[str, str] = Factory(dict)
    body: RequestBody = field(factory=EmptyBody)
    client: str = ""
    """The peer's address, after trusted proxies."""
    id: str = ""
    """The request id that goes through logs, error bodies and store calls."""
    who: str = ""
    """The account that sent it, once that is proven; empty for nobody in particular."""
    held: Held | None = None
    """The rights by which it was admitted; None where everybody may do anything, or nobody has looked yet."""

    def one(self, name: str) -> str | None:
        """Return the first value of a query parameter, None if it is absent."""
        values = self.query.get(name)
        return values[0] if values else None


Chunk = bytes | memoryview
"""Bytes of a body, which stay as they are as long as somebody holds them."""

StreamOpener = Callable[[], AbstractAsyncContextManager[AsyncIterator[Chunk]]]


@runtime_checkable
class Flowing(Protocol):
    """Chunks of which some may go another way."""

    def flow_into(self, sink: Sink) -> None:
        """Let bytes go to `sink` while no chunk is asked for but none has come, in their place among the chunks."""
        ...


@frozen
class Stream:
    """A body of exactly `length` bytes that is opened when the head has been sent and read as fast as the client takes it."""

    length: int
    open: StreamOpener = field(repr=False)


@frozen
class Answer:
    """A response: status, headers and a body. An edge adds `date`, `content-length` and the request id.

    For HEAD the body is left out by the edge; `length` is then what GET would have sent, where it is not the body's own.
    """

    status: int
    headers: Headers = ()
    body: bytes | Stream = b""
    length: int | None = None
    outcome: str = ""
    """One word for the access log about how it was answered: "redirect", "streamed", "memory", "database"."""


@frozen
class Asker:
    """Who asks, and how, in all requests of a client that have the same headers."""

    client: str
    """As in `Request`."""
    headers: Mapping[str, str]


Again = Callable[[Asker, str, float], bytes | None]
"""Takes another request's asker, its id, and Trio's time."""


@frozen
class Lasting:
    """An answer from memory, which everybody gets who asks for the same thing while nothing has changed that it was decided by.

    `again` returns the body with which a request of the same method and path is answered as this one was, and takes notice of it as
    if it had been asked properly; None where it must be. It raises nothing.
    """

    answer: Answer
    again: Again
