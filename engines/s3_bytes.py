"""Moves the bytes of objects to and from a bucket, by urllib3 in worker threads: parts, small objects, ranges.

The asyncio library takes 3.5 ms of the processor for a small PUT, and 8.3 s for a GiB that is copied in parts, all in the one
thread that everything else of the node waits for; this takes 0.9 ms and 4.4 s, and the kernel's copies and the hashing run beside
the node (`scripts/bench copy`, 2 busy cores). What is asked seldom and answered in XML stays with the library (`s3_library.py`).

A thread cannot be cancelled. Its socket has a timeout for every step, and whoever does not wait for it any more shuts the socket
down under it, which ends it at once. Only a thread that still looks up a name or connects goes on, as long as the connect limit.
"""

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256 as hash_of
from html import unescape
from typing import Any, TypeVar, cast

import trio
import urllib3
from attrs import define, field, frozen
from botocore.exceptions import ClientError
from botocore.httpsession import get_cert_path
from botocore.utils import get_environ_proxies
from urllib3.connection import HTTPConnection, HTTPSConnection

from .contract import EngineUnavailable
from .presign import EMPTY, UNSIGNED, Credentials, Target, place_of, sign
from .s3_arguments import S3Arguments
from .trace import current_trace

T = TypeVar("T")

_ERROR_BYTES = 64 * 1024
"""How much of an error's text is read."""

_ELSEWHERE = frozenset(
    {"PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
)

_thread = threading.local()
"""`call`: what a worker thread is busy with."""


class Elsewhere(Exception):
    """The store named another endpoint or region, where the library knows how to follow."""


@define(eq=False)
class _Call:
    """What one thread at a time does on one connection, and the way to end it from outside."""

    _socket: socket.socket | None = field(default=None, init=False)
    _over: bool = field(default=False, init=False)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)

    def works_on(self, given: socket.socket | None) -> None:
        """Note the socket. Raises OSError when nobody waits for the answer any more."""
        with self._lock:
            self._socket = given
            if self._over:
                raise OSError("nobody waits for the answer")

    def abort(self) -> None:
        """End what the thread does, if it does anything."""
        with self._lock:
            self._over = True
            if self._socket is not None:
                with suppress(OSError):
                    # Not the one of SSLSocket, which takes its session away from under the thread.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


class _Noting:
    """Says which socket a thread works on, and gives a body as long to be sent as a write may take."""

    write_timeout: float

    def request(self, *args: Any, **names: Any) -> None:
        """Send a request."""
        connection = cast("HTTPConnection", self)
        if connection.sock is None:
            connection.connect()
        _thread.call.works_on(connection.sock)
        # urllib3 sends within the time that it has to connect.
        connection.timeout = self.write_timeout
        super().request(*args, **names)  # type: ignore[misc] # the mixin's other half has it


class _Connection(_Noting, HTTPConnection):
    pass


class _TlsConnection(_Noting, HTTPSConnection):
    pass


@frozen
class Answer:
    """What a store answered: its headers (lower-case names), and the body's size, of which a GET's has not been read."""

    headers: Mapping[str, str]
    size: int
    response: Any = field(repr=False)

    def receive(self, size: int) -> bytes:
        """Return exactly `size` bytes of the body. Blocks. Raises OSError."""
        # One allocation that the kernel fills: http.client reads past its own buffer.
        data: bytes = self.response.read(size)
        if len(data) < size:
            raise OSError(f"the store broke off {size - len(data)} bytes before the end")
        return data


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
        call = _Call()
        answer = await self._in_thread(call, deadline, lambda: self._get(credentials, key, start, length))
        return Incoming(self, call, answer)

    async def read(self, credentials: Credentials, key: str, start: int, length: int, deadline: float) -> bytes:
        """Return `length` bytes from `start`, fewer only where the object ends."""

        def work() -> bytes:
            answer = self._get(credentials, key, start, length)
            with closing_after_errors(answer):
                data = answer.receive(min(answer.size, length))
            answer.response.release_conn()
            return data

        return await self._in_thread(_Call(), deadline, work)

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

        def work() -> Mapping[str, str]:
            # Over TLS nobody can change the body on its way, and hashing it once more costs CPU.
            plain = self._target.endpoint.startswith("http://")
            payload = (sha256 or hash_of(data).hexdigest()) if plain else UNSIGNED
            return self._ask(credentials, "PUT", key, query, headers, payload, data).headers

        return await self._in_thread(_Call(), deadline, work)

    async def receive(self, call: _Call, answer: Answer, size: int, deadline: float) -> bytes:
        """Return exactly `size` more bytes of an open body."""

        def work() -> bytes:
            with closing_after_errors(answer):
                return answer.receive(size)

        return await self._in_thread(call, deadline, work)

    async def _in_thread(self, call: _Call, deadline: float, work: Callable[[], T]) -> T:
        ended = False

        def run() -> T:
            _thread.call = call
            try:
                return work()
            except urllib3.exceptions.HTTPError as error:
                raise OSError(_words(error)) from error

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

    # In the thread.

    def _get(self, credentials: Credentials, key: str, start: int, length: int | None) -> Answer:
        ranged = start > 0 or length is not None
        headers = {"range": f"bytes={start}-" + ("" if length is None else str(start + length - 1))} if ranged else {}
        try:
            answer = self._ask(credentials, "GET", key, "", headers, EMPTY, None)
        except urllib3.exceptions.ProtocolError:
            # A kept connection that the store had closed meanwhile: once more.
            answer = self._ask(credentials, "GET", key, "", headers, EMPTY, None)
        if ranged and answer.size and not answer.headers.get("content-range", "").startswith(f"bytes {start}-"):
            answer.response.close()
            raise OSError("the store did not heed the Range header")
        return answer

    def _ask(
        self,
        credentials: Credentials,
        method: str,
        key: str,
        query: str,
        headers: Mapping[str, str],
        payload: str,
        body: bytes | None,
    ) -> Answer:
        """Send one request and return its answer; a body was read to its end unless it is that of a good GET."""
        limits = self._arguments.limits
        address, signed = sign(
            self._target, credentials, method, key, query=query, headers=headers, payload=payload, now=time.time()
        )
        response = self._pool.urlopen(
            method,
            address if self._by_proxy else "/" + address.split("/", 3)[3],
            body=body,
            headers={**signed, **_who_asks()},
            retries=False,
            redirect=False,
            assert_same_host=False,
            timeout=urllib3.Timeout(connect=limits.connect, read=limits.read if body is None else limits.write),
            preload_content=False,
            decode_content=False,
        )
        answer = Answer(
            {name.lower(): value for name, value in response.headers.items()},
            int(response.headers.get("content-length") or 0),
            response,
        )
        with closing_after_errors(answer):
            if response.status >= 300:
                answer = _refused(answer, method)
            elif body is not None:
                response.drain_conn()
        return answer


@define(eq=False)
class Incoming:
    """An open body of an object: `size` bytes are left to receive."""

    _lane: ByteLane
    _call: _Call
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

    def close(self) -> None:
        """Give the connection back to the pool after the last byte; before that, close it. Never waits."""
        if self._receiving:
            # A thread may be in it still: it closes what it has when it finds its socket shut down.
            self._call.abort()
        elif self.size:
            self._answer.response.close()
        else:
            self._answer.response.release_conn()


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
        answer.response.close()
        raise


def _refused(answer: Answer, method: str) -> Answer:
    """Return an empty answer for a range behind the object's end. Raises ClientError or Elsewhere for all else."""
    response = answer.response
    text = response.read(_ERROR_BYTES).decode("utf-8", "replace")
    response.close()
    code, message = _element(text, "Code"), _element(text, "Message")
    if response.status == 416 or code == "InvalidRange":
        return Answer(answer.headers, 0, response)
    if response.status < 400 or code in _ELSEWHERE:
        raise Elsewhere(code or str(response.status))
    error = {"Code": code or str(response.status), "Message": message}
    raise ClientError({"Error": error, "ResponseMetadata": {"HTTPStatusCode": response.status}}, method)  # type: ignore[unused-ignore]


def _element(text: str, name: str) -> str:
    found = re.search(f"<{name}>([^<]*)</{name}>", text)
    return unescape(found.group(1)) if found else ""


def _words(error: Exception) -> str:
    """Return what went wrong without the connection object's address that urllib3 puts in front."""
    inner = error.args[-1] if error.args else error
    return str(inner).partition(">: ")[2] or str(inner) or type(error).__name__


@contextmanager
def open_lane(arguments: S3Arguments) -> Iterator[ByteLane]:
    """Open the lane of one bucket without any network I/O, and close its connections at the end."""
    target = Target(arguments.endpoint, arguments.bucket, arguments.region, arguments.addressing)
    scheme, host, _ = place_of(target)
    names: dict[str, Any] = {"maxsize": arguments.maximum_connections}
    if scheme == "https":
        names["cert_reqs"] = "CERT_REQUIRED" if arguments.verify_tls else "CERT_NONE"
        names["ca_certs"] = arguments.ca_bundle or get_cert_path(verify=True)
    address = f"{scheme}://{host}"
    proxy = get_environ_proxies(address).get(scheme)
    with urllib3.ProxyManager(proxy, **names) if proxy else urllib3.PoolManager(**names) as manager:
        pool: Any = manager.connection_from_url(address)
        base = _TlsConnection if scheme == "https" else _Connection
        pool.ConnectionCls = type(base.__name__, (base,), {"write_timeout": arguments.limits.write})
        yield ByteLane(arguments, target, pool, bool(proxy) and scheme == "http")
