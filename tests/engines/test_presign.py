"""Presigned URLs: the same as botocore's, whatever the key; and taken or refused by a real gateway as they should be."""

import http.client
import ssl
import time
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from unittest.mock import patch
from urllib.parse import parse_qs, urlsplit

import pytest
import trio
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials

from engines.contract import Engine
from engines.crossing import Bridge
from engines.presign import EMPTY, Addressing, Credentials, Target, presign, sign
from tests.engines.stores import spec_of
from tests.services import Store

NOW = 1_790_000_000.75
KEYS = [
    "plain",
    "a/b/c",
    "with space",
    "plus+and&amp=?#",
    "50%25",
    "süß-漢字-🙂",
    "a~b!c'(d)*;:@$,",
    "//double",
    "sha256/ab/cd.e",
]


def botocore_url(url: str, credentials: Credentials, region: str, expires: int, method: str) -> str:
    """What botocore makes of it at NOW."""
    moment = datetime.fromtimestamp(int(NOW), UTC).replace(tzinfo=None)
    request = AWSRequest(method=method, url=url)
    keys = ReadOnlyCredentials(credentials.access_key, credentials.secret_key, credentials.token)
    with patch("botocore.auth.get_current_datetime", return_value=moment):
        S3SigV4QueryAuth(keys, "s3", region, expires=expires).add_auth(request)
    return str(request.prepare().url)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("token", [None, "a/token+with=signs"])
@pytest.mark.parametrize("addressing", ["path", "virtual"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_same_as_botocore(key: str, token: str | None, addressing: Addressing, method: str) -> None:
    """Every parameter and the signature are those that botocore computes."""
    credentials = Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", token)
    target = Target("https://s3.example.com:9000", "a-bucket", "eu-central-1", addressing)
    ours = presign(target, credentials, key, now=NOW, expires=600, method=method)
    theirs = botocore_url(ours.partition("?")[0], credentials, "eu-central-1", 600, method)
    assert parse_qs(urlsplit(ours).query) == parse_qs(urlsplit(theirs).query)
    assert urlsplit(ours)[:3] == urlsplit(theirs)[:3]


def test_addressing() -> None:
    """The bucket stands in the path or in the host's name."""
    credentials = Credentials("A", "B")
    path = presign(Target("http://127.0.0.1:7480", "b", "r"), credentials, "k/1", now=NOW, expires=1)
    virtual = presign(Target("https://s3.r.amazonaws.com", "b", "r", "virtual"), credentials, "k/1", now=NOW, expires=1)
    assert path.startswith("http://127.0.0.1:7480/b/k/1?")
    assert virtual.startswith("https://b.s3.r.amazonaws.com/k/1?")


@pytest.mark.parametrize("expires", [0, -1, 604_801])
def test_life_time_is_bounded(expires: int) -> None:
    """What no store would accept is not signed."""
    with pytest.raises(ValueError, match="604800"):
        presign(Target("http://h", "b", "r"), Credentials("A", "B"), "k", now=NOW, expires=expires)


def test_no_secret_in_repr() -> None:
    """Credentials may be printed."""
    assert "hidden" not in repr(Credentials("A", "hidden-secret", "hidden-token"))


def fetch(url: str, store: Store, **headers: str) -> tuple[int, bytes]:
    """GET as any client would; status and body."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        context = ssl.create_default_context(cafile=store.ca)
        connection = http.client.HTTPSConnection(parts.hostname, parts.port, timeout=60, context=context)
    else:
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
    try:
        connection.request("GET", f"{parts.path}?{parts.query}", headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.fixture(params=["us", "us-tls"])
def gateway(request: pytest.FixtureRequest, s3_stores: dict[str, Store]) -> Store:
    chosen: str = request.param
    return s3_stores[chosen]


@pytest.fixture
async def engine(gateway: Store, storage_path: str, bridge: Bridge) -> AsyncIterator[Engine]:
    async with spec_of(gateway, storage_path).open() as opened:
        yield opened


async def get(url: str, gateway: Store, **headers: str) -> tuple[int, bytes]:
    return await trio.to_thread.run_sync(lambda: fetch(url, gateway, **headers))


@pytest.mark.parametrize("name", KEYS)
async def test_real_gateway_takes_it(engine: Engine, gateway: Store, name: str) -> None:
    """Anyone who holds the URL reads the object, in whole or a range of it."""
    key = f"{engine.prefix}presign/{uuid.uuid4()}/{name}"
    await engine.put(key, b"0123456789")
    url = engine.presign(key, now=time.time(), expires=60)
    assert await get(url, gateway) == (200, b"0123456789")
    assert await get(url, gateway, Range="bytes=2-4") == (206, b"234")


async def test_real_gateway_refuses(engine: Engine, gateway: Store) -> None:
    """An expired URL, a tampered one and one for another method are refused."""
    key, other = (f"{engine.prefix}presign/{uuid.uuid4()}" for _ in range(2))
    await engine.put(key, b"mine")
    await engine.put(other, b"not yours")
    now = time.time()
    good = engine.presign(key, now=now, expires=60)
    bad = [
        engine.presign(key, now=now - 120, expires=60),
        good.replace(key.rsplit("/", 1)[1], other.rsplit("/", 1)[1]),
        good.replace("X-Amz-Expires=60", "X-Amz-Expires=6000"),
        good[:-1] + ("0" if good[-1] != "0" else "1"),
        engine.presign(key, now=now, expires=60, method="PUT"),
    ]
    assert [(await get(url, gateway))[0] for url in bad] == [403] * len(bad)
    assert await get(good, gateway) == (200, b"mine")


async def test_public_endpoint(gateway: Store, storage_path: str, bridge: Bridge) -> None:
    """With a public endpoint the URL leads there, signed for that host; the node itself goes the other way."""
    public = gateway.endpoint.replace("127.0.0.1", "localhost")
    async with spec_of(gateway, storage_path, public_endpoint=public).open() as engine:
        key = f"{engine.prefix}presign/{uuid.uuid4()}"
        await engine.put(key, b"public")
        url = engine.presign(key, now=time.time(), expires=60)
    assert url.startswith(public + "/")
    assert await get(url, gateway) == (200, b"public")


def test_a_signed_request_is_amazons_example() -> None:
    """A signed request is, to the letter, the first example of "Signature Calculations for the Authorization Header"."""
    target = Target("https://s3.amazonaws.com", "examplebucket", "us-east-1", "virtual")
    keys = Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    now = datetime(2013, 5, 24, tzinfo=UTC).timestamp()
    address, headers = sign(target, keys, "GET", "test.txt", headers={"range": "bytes=0-9"}, payload=EMPTY, now=now)
    assert address == "https://examplebucket.s3.amazonaws.com/test.txt"
    assert headers["authorization"] == (
        "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, "
        "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date, "
        "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    )
