"""Moves the bytes of objects to and from a bucket in worker threads: parts, small objects, ranges.

The asyncio library takes 3.5 ms of the processor for a small PUT, and 8.3 s for a GiB that is copied in parts, all in the one
thread that everything else of the node waits for. Here the kernel's copies and the hashing run beside the node, and a request costs
a tenth of that (`s3_wire.py`). What is asked seldom and answered in XML stays with the library (`s3_library.py`).

A thread cannot be cancelled. Its socket has a timeout for every step, and whoever does not wait for it any more shuts the socket
down under it, which ends it at once. Only a thread that still looks up a name or connects goes on, as long as the connect limit.
"""

import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256 as hash_of
from html import unescape
from typing import Any, TypeVar

import trio
import urllib3
from attrs import define, field
from botocore.exceptions import ClientError
from botocore.httpsession import get_cert_path
from botocore.utils import get_environ_proxies
from urllib3.util.ssl_ import create_urllib3_context

from .contract import EngineUnavailable, Seen
from .presign import EMPTY, UNSIGNED, Credentials, Target, place_of, sign
from .s3_arguments import S3Arguments
from .s3_calls import Call
from .s3_stream import Streamed
from .s3_wire import Answer, NoAnswer, Timeouts, ask, head
from .tls_suites import prefer_fast
from .trace import current_trace

T = TypeVar("T")

_ERROR_BYTES = 64 * 1024
"""How much of an error's text is read."""

_ERROR = re.compile(r"\s*(<\?xml[^>]*\?>)?\s*<Error[\s>]")
"""How the text of an error begins."""

_ELSEWHERE = frozenset(
    {"PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
)


class Elsewhere(Exception):
    """The store named another endpoint or region, where the library knows how to follow."""


@define(eq=False)
class ByteLane:
    """Calls on one bucket, each in a thread. Made by `open_lane`; safe for concurrent use.

    Every call raises EngineUnavailable when its deadline (seconds) has passed, ClientError for what the store answered, OSError
    for what became of the connection, and Elsewhere.
    """

    _arguments: S3Arguments
    _target: Target
    _pool: Any
    _by_proxy: bool
    """Requests go to a proxy, which wants to be told the whole address."""
    _limiter: trio.CapacityLimiter = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._limiter = trio.CapacityLimiter(self._arguments.maximum_connections)

    async def get(
        self, credentials: Credentials, key: str, start: int, length: int | None, deadline: float
    ) -> "Incoming":
        """Open bytes of an object, to its end where `length` is None; the caller closes what is returned."""
        call = Call()
        answer = await self._in_thread(call, deadline, lambda: self._get(call, credentials, key, start, length))
        return Incoming(self, call, answer)

    async def read(self, credentials: Credentials, key: str, start: int, length: int, deadline: float) -> bytes:
        """Return `length` bytes from `start`, fewer only where the object ends."""
        call = Call()

        def work() -> bytes:
            answer = self._get(call, credentials, key, start, length)
            with closing_after_errors(answer):
                data = answer.receive(min(answer.size, length))
            answer.release()
            return data

        return await self._in_thread(call, deadline, work)

    async def put(
        self,
        credentials: Credentials,
        key: str,
        query: str,
        headers: Mapping[str, str],
        data: bytes,
        sha256: str | None,
        deadline: float,
    ) -> Mapping[str, str]:
        """Send a body and return the headers of the answer. `query` is sorted and quoted, `sha256` the body's if it is known."""
        call = Call()

        def work() -> Mapping[str, str]:
            # Over TLS nobody can change the body on its way, and hashing it once more costs CPU.
            plain = self._target.endpoint.startswith("http://")
            payload = (sha256 or hash_of(data).hexdigest()) if plain else UNSIGNED
            return self._ask(call, credentials, "PUT", key, query, headers, payload, data).headers

        return await self._in_thread(call, deadline, work)

    async def receive(self, call: Call, answer: Answer, size: int, deadline: float) -> bytes:
        """Return exactly `size` more bytes of an open body."""

        def work() -> bytes:
            with closing_after_errors(answer):
                return answer.receive(size)

        return await self._in_thread(call, deadline, work)

    async def receive_into(
        self, call: Call, answer: Answer, buffer: memoryview, most: int, seen: Seen, deadline: float
    ) -> int:
        """Fill a buffer from an open body that has `most` bytes left; `seen` is called in the thread."""

        def work() -> int:
            with closing_after_errors(answer):
                return answer.receive_into(buffer, most, seen)

        return await self._in_thread(call, deadline, work)

    async def _in_thread(self, call: Call, deadline: float, work: Callable[[], T]) -> T:
        ended = False

        def run() -> T:
            try:
                return work()
            except urllib3.exceptions.HTTPError as error:
                raise OSError(words_of(error)) from error

        try:
            with trio.move_on_after(deadline):
                result = await trio.to_thread.run_sync(run, abandon_on_cancel=True, limiter=self._limiter)
                ended = True
                return result
        except (OSError, ClientError, Elsewhere):
            ended = True
            raise
        finally:
            if not ended:
                call.abort()
        raise EngineUnavailable(f"no answer within {deadline:g} s")

    async def stream(
        self,
        credentials: Credentials,
        key: str,
        query: str,
        headers: Mapping[str, str],
        body: Streamed,
        deadline: float,
    ) -> Mapping[str, str]:
        """Send a body that is made while it is sent, and return the headers of the answer. `query` is sorted and quoted."""
        call = Call()

        def work() -> Mapping[str, str]:
            try:
                body.begin()
                return self._ask(
                    call, credentials, "PUT", key, query, {**headers, **body.headers}, body.payload, body
                ).headers
            finally:
                body.close()

        return await self._in_thread(call, deadline, work)

    # In the thread.

    def opened(
        self, call: Call, credentials: Credentials, key: str, start: int, length: int | None, silence: float
    ) -> Answer:
        """Open bytes of an object, to its end where `length` is None, in the caller's own thread; `call` ends it from outside."""
        return self._get(call, credentials, key, start, length, silence)

    def _get(
        self,
        call: Call,
        credentials: Credentials,
        key: str,
        start: int,
        length: int | None,
        silence: float | None = None,
    ) -> Answer:
        ranged = start > 0 or length is not None
        headers = {"range": f"bytes={start}-" + ("" if length is None else str(start + length - 1))} if ranged else {}
        try:
            answer = self._ask(call, credentials, "GET", key, "", headers, EMPTY, b"", silence)
        except NoAnswer:
            # A kept connection that the store had closed meanwhile: once more.
            answer = self._ask(call, credentials, "GET", key, "", headers, EMPTY, b"", silence)
        if ranged and answer.size and not answer.headers.get("content-range", "").startswith(f"bytes {start}-"):
            answer.close()
            raise OSError("the store did not heed the Range header")
        return answer

    def _ask(
        self,
        call: Call,
        credentials: Credentials,
        method: str,
        key: str,
        query: str,
        headers: Mapping[str, str],
        payload: str,
        body: bytes | Streamed,
        silence: float | None = None,
    ) -> Answer:
        """Send one request and return its answer; a body was read to its end unless it is that of a good GET."""
        limits, sends = self._arguments.limits, method == "PUT"
        address, signed = sign(
            self._target, credentials, method, key, query=query, headers=headers, payload=payload, now=time.time()
        )
        length = {"content-length": str(body.length if isinstance(body, Streamed) else len(body))} if sends else {}
        answer = ask(
            self._pool,
            call,
            head(
                method,
                address if self._by_proxy else "/" + address.split("/", 3)[3],
                {**signed, **length, **_who_asks()},
            ),
            body.sent(self._target, credentials, signed) if isinstance(body, Streamed) else body,
            Timeouts(limits.connect, limits.write, silence or (limits.write if sends else limits.read)),
        )
        with closing_after_errors(answer):
            if answer.status >= 300:
                answer = _refused(answer, method)
            elif sends:
                _check_taken(answer, method)
        return answer


@define(eq=False)
class Incoming:
    """An open body of an object: `size` bytes are left to receive."""

    _lane: ByteLane
    _call: Call
    _answer: Answer
    size: int = field(init=False)
    _receiving: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.size = self._answer.size

    async def receive(self, size: int, deadline: float) -> bytes:
        """Return exactly `size` bytes, of those that are left. Raises what the lane's calls raise."""
        self._receiving = True
        data = await self._lane.receive(self._call, self._answer, size, deadline)
        self._receiving = False
        self.size -= size
        return data

    async def receive_into(self, buffer: memoryview, seen: Seen, deadline: float) -> int:
        """Fill a buffer as often as `seen` says; return how many bytes came. Raises what the lane's calls raise."""
        self._receiving = True
        got = await self._lane.receive_into(self._call, self._answer, buffer, self.size, seen, deadline)
        self._receiving = False
        self.size -= got
        return got

    def close(self) -> None:
        """Give the connection back to the pool after the last byte; before that, close it. Never waits."""
        if self._receiving:
            # A thread may be in it still: it closes what it has when it finds its socket shut down.
            self._call.abort()
        elif self.size:
            self._answer.close()
        else:
            self._answer.release()


def _who_asks() -> Mapping[str, str]:
    """Return headers, not signed, that tell a store and what is on the way for which request of a client we work."""
    trace = current_trace()
    if trace is None:
        return {"User-Agent": "antipode"}
    return {"User-Agent": f"antipode request/{trace.id}", "X-Request-ID": trace.id}


@contextmanager
def closing_after_errors(answer: Answer) -> Iterator[None]:
    """Close a connection whose answer was not read as it should have been."""
    try:
        yield
    except BaseException:
        answer.close()
        raise


def _refused(answer: Answer, method: str) -> Answer:
    """Return an empty answer for a range behind the object's end. Raises ClientError or Elsewhere for all else."""
    text = answer.text(_ERROR_BYTES)
    code, message = _element(text, "Code"), _element(text, "Message")
    if answer.status == 416 or code == "InvalidRange":
        answer.size = 0
        return answer
    if answer.status < 400 or code in _ELSEWHERE:
        raise Elsewhere(code or str(answer.status))
    error = {"Code": code or str(answer.status), "Message": message}
    raise ClientError({"Error": error, "ResponseMetadata": {"HTTPStatusCode": answer.status}}, method)  # type: ignore[unused-ignore]


def _check_taken(answer: Answer, method: str) -> None:
    """Be done with the answer to a body. Raises ClientError for one of 200 that tells of an error, as botocore does.

    Raises OSError for what no store says, such as the page of a proxy that wants a login: it has stored nothing.
    """
    if answer.ended:
        answer.drain()
        return
    if 0 < answer.size <= _ERROR_BYTES:
        text = answer.receive(answer.size).decode("utf-8", "replace")
        answer.drain()
    else:
        text = answer.text(_ERROR_BYTES)
    if _ERROR.match(text):
        error = {"Code": _element(text, "Code") or "InternalError", "Message": _element(text, "Message")}
        raise ClientError({"Error": error, "ResponseMetadata": {"HTTPStatusCode": 500}}, method)  # type: ignore[unused-ignore]
    if text and "etag" not in answer.headers:
        raise OSError(f"what answers is no store: {text[:80]!r}")


def _element(text: str, name: str) -> str:
    found = re.search(f"<{name}>([^<]*)</{name}>", text)
    return unescape(found.group(1)) if found else ""


def words_of(error: Exception) -> str:
    """Return what went wrong without the connection object's address that urllib3 puts in front."""
    inner = error.args[-1] if error.args else error
    return str(inner).partition(">: ")[2] or str(inner) or type(error).__name__


def _context(arguments: S3Arguments) -> ssl.SSLContext:
    """Return what all connections shake hands with: to read the public authorities for each takes 20 to 40 ms of the processor."""
    context = create_urllib3_context(
        cert_reqs=ssl.CERT_REQUIRED if arguments.verify_tls else ssl.CERT_NONE,
        # Else it would ask for what the asyncio library does not (`tls_trust.py`).
        verify_flags=0,
    )
    if arguments.verify_tls:
        context.load_verify_locations(arguments.ca_bundle or get_cert_path(verify=True))
    prefer_fast(context)
    return context


@contextmanager
def open_lane(arguments: S3Arguments) -> Iterator[ByteLane]:
    """Open the lane of one bucket without any network I/O, and close its connections at the end."""
    target = Target(arguments.endpoint, arguments.bucket, arguments.region, arguments.addressing)
    scheme, host, _ = place_of(target)
    names: dict[str, Any] = {"maxsize": arguments.maximum_connections}
    address = f"{scheme}://{host}"
    proxy = get_environ_proxies(address).get(scheme)
    if scheme == "https":
        names["ssl_context"] = context = _context(arguments)
        if proxy:
            names["proxy_ssl_context"] = context
    with urllib3.ProxyManager(proxy, **names) if proxy else urllib3.PoolManager(**names) as manager:
        pool: Any = manager.connection_from_url(address)
        yield ByteLane(arguments, target, pool, bool(proxy) and scheme == "http")
