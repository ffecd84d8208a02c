"""The S3 engine against stores that refuse, hang, vanish or break off, and what it sends."""

import hashlib
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from engines import parse_engine
from engines.contract import Engine, EngineError, EngineRefused, EngineUnavailable, KeyPage, Part, PartsMissing
from engines.crossing import Bridge
from scripts.services.processes import free_ports
from tests.engines.stores import spec_of
from tests.services import Store

Call = Callable[[Engine], Awaitable[object]]

HANGS = 20.0
"""Seconds: many times the limits that the tests set, for a busy machine, and far less than the ones that they leave alone."""


async def never(_: trio.SocketStream) -> None:
    """Take the connection and say nothing."""
    await trio.sleep_forever()


async def opened(engine: Engine) -> None:
    async with engine.open("k"):
        pass


CALLS: dict[str, Call] = {
    "head": lambda engine: engine.head("k"),
    "open": opened,
    "read": lambda engine: engine.read("k", 0, 1),
    "put": lambda engine: engine.put("k", b"x"),
    "begin_parts": lambda engine: engine.begin_parts("k"),
    "put_part": lambda engine: engine.put_part("k", "u", 1, b"x"),
    "list_parts": lambda engine: engine.list_parts("k", "u"),
    "finish_parts": lambda engine: engine.finish_parts("k", "u", [Part(1, 1, "e")]),
    "abandon_parts": lambda engine: engine.abandon_parts("k"),
    "list_open_parts": lambda engine: engine.list_open_parts(""),
    "delete": lambda engine: engine.delete("k"),
    "list_keys": lambda engine: engine.list_keys(""),
}


LONG = dict.fromkeys(("connect_timeout", "read_timeout", "write_timeout"), HANGS)
"""Limits for a store that answers, however busy the machine is that plays it."""


def arguments(port: int, **other: object) -> dict[str, object]:
    return {
        "hostname": "127.0.0.1", "port": port, "is_secure": False, "storage_path": "/",
        "access_key": "A", "secret_key": "B", "bucket_name": "bucket",
        "connect_timeout": 0.3, "read_timeout": 0.3, "write_timeout": 0.3,
    } | other  # fmt: skip


@asynccontextmanager
async def server(handler: Callable[[trio.SocketStream], Awaitable[object]]) -> AsyncIterator[int]:
    """A TCP server on a free port, for stores that no real one can play."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                await handler(stream)
            except trio.BrokenResourceError:
                return  # the engine has hung up

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, handle, listeners)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def scripted(
    handler: Callable[[trio.SocketStream], Awaitable[object]], limits: Mapping[str, float] = LONG
) -> AsyncIterator[Engine]:
    """An engine on a store that is played by `handler`."""
    async with server(handler) as port, parse_engine("RadosGWStorage", arguments(port, **limits)).open() as engine:
        yield engine


@pytest.fixture
def dead_port() -> int:
    (port,) = free_ports(1)
    return port


@pytest.mark.parametrize("name", CALLS)
async def test_dead_port(bridge: Bridge, dead_port: int, name: str) -> None:
    """Where nobody listens every call is EngineUnavailable at once; opening the engine notices nothing."""
    async with parse_engine("RadosGWStorage", arguments(dead_port)).open() as engine:
        with trio.fail_after(HANGS), pytest.raises(EngineUnavailable, match="bucket/"):
            await CALLS[name](engine)


@pytest.mark.parametrize("name", CALLS)
async def test_silent_store(bridge: Bridge, name: str) -> None:
    """A store that takes the connection and never answers costs the limits, and not more."""
    async with server(never) as port, parse_engine("RadosGWStorage", arguments(port)).open() as engine:
        with trio.fail_after(HANGS), pytest.raises(EngineUnavailable):
            await CALLS[name](engine)
    assert bridge.statistics().left_behind == 0


async def test_silence_counts_per_call(bridge: Bridge) -> None:
    """A silent store costs a read its connect and read limits together, 0.6 s here."""
    async with (
        server(never) as port,
        parse_engine("RadosGWStorage", arguments(port, write_timeout=60)).open() as engine,
    ):
        began = time.monotonic()
        with pytest.raises(EngineUnavailable, match="no answer"):
            await engine.head("k")
        assert time.monotonic() - began < HANGS


async def test_callers_deadline_holds(bridge: Bridge) -> None:
    """A caller's own deadline ends the call in time, as a cancellation and not as an error of ours."""
    async with server(never) as port, parse_engine("RadosGWStorage", arguments(port, read_timeout=60)).open() as engine:
        began = time.monotonic()
        with trio.move_on_after(0.2) as scope:
            await engine.head("k")
        assert scope.cancelled_caught
        assert time.monotonic() - began < HANGS


async def answer(stream: trio.SocketStream, head: str, body: bytes = b"") -> None:
    await stream.receive_some(65536)
    await stream.send_all(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)


async def test_body_breaks_off(bridge: Bridge) -> None:
    """A body that ends before its length is EngineUnavailable, never a short object."""

    async def handler(stream: trio.SocketStream) -> None:
        await answer(stream, "HTTP/1.1 200 OK\nContent-Length: 1000", b"x" * 600)

    async with scripted(handler) as engine, engine.open("k") as reader:
        with pytest.raises(EngineUnavailable):
            await reader.receive(1000)


async def test_body_goes_silent(bridge: Bridge) -> None:
    """A body that stops flowing is EngineUnavailable after the read limit."""

    async def handler(stream: trio.SocketStream) -> None:
        await answer(stream, "HTTP/1.1 200 OK\nContent-Length: 1000", b"x" * 600)
        await trio.sleep_forever()

    async with scripted(handler, LONG | {"read_timeout": 2}) as engine, engine.open("k") as reader:
        with trio.fail_after(HANGS), pytest.raises(EngineUnavailable):
            await reader.receive(1000)


async def test_range_ignored(bridge: Bridge) -> None:
    """A store that answers a range with the whole object isn't believed."""

    async def handler(stream: trio.SocketStream) -> None:
        await answer(stream, "HTTP/1.1 200 OK\nContent-Length: 10", b"0123456789")

    async with scripted(handler) as engine:
        with pytest.raises(EngineUnavailable, match="Range"):
            await engine.read("k", 2, 3)


async def test_dead_connection_is_replaced(bridge: Bridge) -> None:
    """A read on a kept connection that the store has closed meanwhile is repeated on a new one."""
    connections = 0

    async def handler(stream: trio.SocketStream) -> None:
        nonlocal connections
        connections += 1
        await answer(stream, "HTTP/1.1 200 OK\nContent-Length: 5\nETag: abc")
        await stream.receive_some(65536)  # the next request, which gets no answer

    async with scripted(handler) as engine:
        assert [(await engine.head("k")).size for _ in range(3)] == [5, 5, 5]
    assert connections == 3


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (503, "SlowDown", EngineUnavailable), (500, "InternalError", EngineUnavailable),
        (429, "TooManyRequests", EngineUnavailable), (400, "RequestTimeout", EngineUnavailable),
        (403, "AccessDenied", EngineRefused), (403, "RequestTimeTooSkewed", EngineRefused),
        (404, "NoSuchBucket", EngineRefused), (400, "InvalidRequest", EngineRefused),
    ],
)  # fmt: skip
async def test_errors_of_the_store(bridge: Bridge, status: int, code: str, expected: type[EngineError]) -> None:
    """What a store may get over is unavailable, what it will say again is refused; it is asked once."""
    requests = 0
    xml = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>words of the store</Message></Error>".encode()

    async def handler(stream: trio.SocketStream) -> None:
        nonlocal requests
        requests += 1
        await answer(stream, f"HTTP/1.1 {status} No\nContent-Type: application/xml\nContent-Length: {len(xml)}", xml)

    async with scripted(handler) as engine:
        with pytest.raises(expected, match=f"{code}.*words of the store"):
            await engine.put("k", b"x")
    assert requests == 1


@pytest.mark.parametrize("token", [b"<NextContinuationToken>t/2</NextContinuationToken>", b""])
async def test_an_empty_page_is_not_the_end(bridge: Bridge, token: bytes) -> None:
    """A page without keys that says that more follow is gone on from; a store that does not say how is not taken for empty."""
    asked: list[str] = []

    async def handler(stream: trio.SocketStream) -> None:
        while head := bytes(await stream.receive_some(65536)):
            asked.append(head.decode().partition(" HTTP")[0])
            found = b"<IsTruncated>false</IsTruncated><Contents><Key>p/k</Key><Size>1</Size></Contents>"
            more = b"<IsTruncated>true</IsTruncated>" + token
            xml = (
                b"<ListBucketResult>" + (found if "continuation-token" in asked[-1] else more) + b"</ListBucketResult>"
            )
            said = b"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n" % len(xml)
            await stream.send_all(said + xml)

    async with scripted(handler) as engine:
        if token:
            assert await engine.list_keys("p/") == KeyPage(("p/k",), None)
            assert "continuation-token=t%2F2" in asked[-1]
        else:
            with pytest.raises(EngineUnavailable, match="empty page"):
                await engine.list_keys("p/")


@pytest.mark.parametrize(("call", "key"), [("finish_parts", "k"), ("put", "k")])
async def test_an_error_in_an_answer_of_200(bridge: Bridge, call: str, key: str) -> None:
    """The end of a multi-part write may be told to have failed after the store has said 200: it is an error all the same."""
    xml = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>words of the store</Message></Error>"

    async def handler(stream: trio.SocketStream) -> None:
        while await stream.receive_some(65536):
            said = b"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n" % len(xml)
            await stream.send_all(said + xml)

    async with scripted(handler) as engine:
        with pytest.raises(EngineUnavailable):
            await CALLS[call](engine)


MINE = [Part(1, 5, "0" * 32), Part(7, 4, "1" * 32)]
THEIRS = hashlib.md5(bytes.fromhex("0" * 32 + "2" * 32), usedforsecurity=False).hexdigest() + "-2"
OURS = hashlib.md5(bytes.fromhex("0" * 32 + "1" * 32), usedforsecurity=False).hexdigest() + "-2"


@pytest.mark.parametrize(
    ("etag", "size", "found"),
    [
        (OURS, 9, False),
        (THEIRS, 9, True),
        (OURS.replace("-2", "-3"), 9, True),
        (THEIRS, 8, None),
        ("", 9, False),
        ("of-a-form-of-its-own", 9, False),
    ],
)
async def test_a_write_that_another_call_had_ended(bridge: Bridge, etag: str, size: int, found: bool | None) -> None:
    """A store may answer 200 to whoever ends a write again, with other parts: what it made of which says its entity tag."""
    xml = f'<CompleteMultipartUploadResult><Key>k</Key><ETag>"{etag}"</ETag></CompleteMultipartUploadResult>'.encode()

    async def handler(stream: trio.SocketStream) -> None:
        while data := await stream.receive_some(65536):
            if data.startswith(b"HEAD"):
                said = f'HTTP/1.1 200 OK\r\nETag: "{etag}"\r\nContent-Length: {size}\r\n\r\n'
                await stream.send_all(said.encode())
            elif b"</CompleteMultipartUpload>" in data:
                said = f"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: {len(xml)}\r\n\r\n"
                await stream.send_all(said.encode() + xml)

    async with scripted(handler) as engine:
        if found is None:
            with pytest.raises(PartsMissing, match="other parts"):
                await engine.finish_parts("k", "u", MINE)
        else:
            facts = await engine.finish_parts("k", "u", MINE)
            assert (facts.size, facts.found) == (9, found)


@pytest.mark.parametrize("size", [300, 70_000])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_page_in_place_of_a_store(bridge: Bridge, size: int, chunked: bool) -> None:
    """What answers every request with a page, as a proxy that wants a login, has stored nothing."""
    page = b"<html>" + b"log in " * (size // 7)

    async def handler(stream: trio.SocketStream) -> None:
        while await stream.receive_some(65536):
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(page), page) if chunked else page
            length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(page)
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n%s\r\n\r\n%s" % (length, body))

    async with scripted(handler) as engine:
        with pytest.raises(EngineUnavailable, match="no store"):
            await CALLS["put"](engine)


async def test_no_trailing_checksums(bridge: Bridge) -> None:
    """A body has a length and no trailer; over HTTP it is signed, and the key keeps its path-style place."""
    head = b""

    async def handler(stream: trio.SocketStream) -> None:
        nonlocal head
        head = bytes(await stream.receive_some(65536))
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async with scripted(handler) as engine:
        await engine.put("some/key", b"x" * 10)
    sent = head.decode().lower()
    assert sent.startswith("put /bucket/some/key http/1.1")
    assert "content-length: 10" in sent
    assert "aws-chunked" not in sent
    assert "x-amz-checksum" not in sent
    assert "unsigned-payload" not in sent


@pytest.mark.parametrize("name", ["us", "us-tls"])
@pytest.mark.parametrize("wrong", [{"secret_key": "wrong"}, {"access_key": "wrong"}, {"bucket_name": "no-such-bucket"}])
@pytest.mark.parametrize("call", ["head", "open", "read", "put", "begin_parts", "delete", "list_keys"])
async def test_refused(
    bridge: Bridge, s3_stores: dict[str, Store], name: str, wrong: dict[str, object], call: str
) -> None:
    """Wrong keys and a missing bucket are EngineRefused for every call, never a missing object."""
    chosen = s3_stores[name]
    async with spec_of(chosen, "/refused", **wrong).open() as engine:
        with pytest.raises(EngineRefused) as caught:
            await CALLS[call](engine)
    assert chosen.secret_key not in str(caught.value)


async def test_certificate_is_verified(bridge: Bridge, s3_stores: dict[str, Store]) -> None:
    """A certificate of an authority that isn't known is not trusted, unless verify_tls is false."""
    chosen = s3_stores["us-tls"]
    async with spec_of(chosen, "/refused", ca_bundle=None).open() as engine:
        with pytest.raises(EngineUnavailable, match=r"(?i)certificate"):
            await engine.list_keys("")
    async with spec_of(chosen, "/refused", ca_bundle=None, verify_tls=False).open() as engine:
        await engine.list_keys("none/")


@pytest.fixture
def bundle(s3_stores: dict[str, Store], tmp_path: Path) -> Path:
    """A copy of the file with the authority of the stores."""
    ca, copy = s3_stores["us-tls"].ca, tmp_path / "ca.pem"
    assert ca is not None
    copy.write_bytes(Path(ca).read_bytes())
    return copy


async def test_authorities_are_read_once(
    bridge: Bridge, s3_stores: dict[str, Store], storage_path: str, bundle: Path
) -> None:
    """A new connection does not read the authorities' file again, which takes longer than all else that it does."""
    async with spec_of(s3_stores["us-tls"], storage_path, ca_bundle=str(bundle)).open() as engine:
        key = f"{engine.prefix}authorities/{uuid.uuid4()}"
        await engine.put(key, b"hello")
        await trio.Path(bundle).unlink()
        async with engine.open(key), trio.open_nursery() as nursery:
            nursery.start_soon(engine.read, key, 0, 5)


async def test_ceph_keeps_all_parts(bridge: Bridge, s3_stores: dict[str, Store], storage_path: str) -> None:
    """Ceph's gateway refuses to leave a part out; that is PartsMissing, and all parts together still make the object."""
    async with spec_of(s3_stores["us"], storage_path).open() as engine:
        key = f"{engine.prefix}parts/{uuid.uuid4()}"
        upload = await engine.begin_parts(key)
        parts = [await engine.put_part(key, upload, number, bytes(engine.part_minimum)) for number in (1, 2, 3)]
        with pytest.raises(EngineError):
            await engine.finish_parts(key, upload, [parts[0], parts[2]])
        assert (await engine.finish_parts(key, upload, parts)).size == 3 * engine.part_minimum


STS_ANSWER = """<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult>
<AssumedRoleUser><Arn>arn:aws:sts::1:assumed-role/r/quay</Arn><AssumedRoleId>x:quay</AssumedRoleId></AssumedRoleUser>
<Credentials><AccessKeyId>TEMPORARY</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>the-token</SessionToken>
<Expiration>2999-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"""


async def test_role_credentials(bridge: Bridge) -> None:
    """A role is taken at the first request, once; requests carry its token, and from then on URLs are presigned with it."""
    asked: list[bytes] = []
    heads: list[bytes] = []

    async def token_service(stream: trio.SocketStream) -> None:
        asked.append(bytes(await stream.receive_some(65536)))
        body = STS_ANSWER.encode()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    async def bucket(stream: trio.SocketStream) -> None:
        while head := bytes(await stream.receive_some(65536)):
            heads.append(head)
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async with server(token_service) as sts, server(bucket) as port:
        given = {
            "s3_bucket": "bucket", "storage_path": "/", "endpoint_url": f"http://127.0.0.1:{port}",
            "sts_role_arn": "arn:aws:iam::1:role/r", "sts_user_access_key": "USER", "sts_user_secret_key": "secret",
            "sts_endpoint_url": f"http://127.0.0.1:{sts}", **LONG,
        }  # fmt: skip
        async with parse_engine("STSS3Storage", given).open() as engine:
            assert asked == []
            assert not engine.presigns
            with pytest.raises(NotImplementedError):
                engine.presign("k", now=0, expires=60)
            await engine.head("k")
            await engine.head("k")
            assert "X-Amz-Security-Token=the-token" in engine.presign("k", now=0, expires=60)
    assert len(asked) == 1
    assert len(heads) == 2
    assert all(b"x-amz-security-token: the-token" in head.lower() for head in heads)


async def test_credentials_of_the_environment(
    bridge: Bridge, s3_stores: dict[str, Store], storage_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without keys in the configuration those of the environment are used, looked for at the first request."""
    chosen = s3_stores["us"]
    given = {"s3_bucket": chosen.bucket, "storage_path": storage_path, "endpoint_url": chosen.endpoint}
    async with parse_engine("S3Storage", given).open() as engine:
        assert engine.presigns is False
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", chosen.access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", chosen.secret_key)
        await engine.put(f"{engine.prefix}ambient", b"x")
        assert engine.presign("k", now=0, expires=60).startswith(chosen.endpoint)
