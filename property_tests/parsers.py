"""Every parser that faces the network, as a target for fuzzing: bytes in; any error but those that it promises is a finding.

Hypothesis runs each for a moment in every test run (`test_parsers.py`), atheris for as long as one likes (`scripts/fuzz`).
"""

import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from ipaddress import ip_address, ip_network
from typing import Any, cast

import h11
import jwt
from attrs import evolve
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.answers import Request
from node.api.replication import parse_wait
from node.auth.challenge import bearer
from node.auth.endpoint import _form
from node.auth.header import Basic, Bearer, Malformed, read_authorization
from node.auth.id_token import describe, email_of, name_of, refuse
from node.auth.issuers import keys_of
from node.auth.keyring import Keyring
from node.auth.outgoing import NoAnswer, read_object
from node.auth.provider import read_device
from node.auth.scopes import MOST, Need, read_scopes
from node.auth.sealing import Sealed, Sealer
from node.auth.sign_in import is_loopback, proves
from node.auth.tokens import BadToken, Tokens
from node.commands.loopback import read_return
from node.commands.own_logins import read_logins
from node.commands.signing_in import Failed, read_answer
from node.config.settings import OidcSettings
from node.config.values import Unfit
from node.errors import RegistryError
from node.hint_wire import BadMessage, decode
from node.names import check_digest, check_name, is_account, is_name, is_tag, namespace_of
from node.pull.accept import accepts, default_child
from node.pull.listings import _page_size
from node.pull.ranges import RangeNotSatisfiable, parse_range
from node.push.durability import read_seconds
from node.push.idempotency import HEADER, identify, read_key
from node.push.idempotency import MOST as LONGEST_KEY
from node.push.reading import KNOWN, read_manifest
from node.push.uploads import _content_range, _upload_id
from node.records.postgres import Database, DatabaseUnavailable
from node.web.access import SANE_ID, request_ids
from node.web.heads import Head, Heads, NotHere
from node.web.incoming import headers_of, origin_form, path_of, query_of
from node.web.lane import HEAD_MOST
from node.web.proxies import Proxies
from node.web.proxy_protocol import BadProxyHeader, read_header
from replication.policy import Durability, DurabilityInvalid, PolicyInvalid, dump_policy, parse_policy

DIGEST = "sha256:" + "0" * 64


def text(data: bytes) -> str:
    """Return bytes as the edge hands header values on."""
    return data.decode("latin-1")


def fuzz_name(data: bytes) -> None:
    given = data.decode("utf-8", "replace")
    with suppress(RegistryError):
        assert check_name(given) == given
        assert is_name(given)
        assert given.startswith(namespace_of(given, "library")) or "/" not in given
    if is_tag(given):
        assert given.isascii()
        assert len(given) <= 128


def fuzz_digest(data: bytes) -> None:
    given = data.decode("utf-8", "replace")
    with suppress(RegistryError):
        assert str(check_digest(given)) == given
    with suppress(RegistryError):
        assert str(_upload_id(given)).isascii()


def fuzz_range(data: bytes) -> None:
    size, header = int.from_bytes(data[:2]), text(data[2:])
    with suppress(RangeNotSatisfiable):
        found = parse_range(header, size)
        assert found is None or 0 <= found.start < found.stop <= size


def fuzz_content_range(data: bytes) -> None:
    with suppress(RegistryError):
        start, length = _content_range(Request("PATCH", "/", headers={"content-range": text(data)}))
        assert start is not None
        assert length is not None
        assert start >= 0
        assert length > 0


def fuzz_accept(data: bytes) -> None:
    header, _, index = data.partition(b"\n")
    for kind in KNOWN:
        accepts(text(header), kind)
    default_child(index, text(header))


def fuzz_manifest(data: bytes) -> None:
    kind, _, body = data.partition(b"\n")
    with suppress(RegistryError):
        facts = read_manifest(body, text(kind) or None, DIGEST)
        assert facts.media_type in KNOWN
        json.dumps(dict(facts.annotations or {})).encode()
        for held in (*facts.blobs, *facts.children, facts.subject or "", facts.artifact_type or ""):
            assert held.isascii()
            assert held.isprintable() or held == ""


def fuzz_target(data: bytes) -> None:
    path, _, query = data.partition(b"?")
    with suppress(RegistryError):
        assert path_of(path).startswith("/")
        assert origin_form(path).startswith(b"/")
    with suppress(RegistryError):
        values = query_of(query)
        for given in values.values():
            "".join(given).encode()
        _page_size(Request("GET", "/", query=values), 100)


def fuzz_words(data: bytes) -> None:
    given = text(data)
    with suppress(DurabilityInvalid):
        assert Durability.parse(str(Durability.parse(given))) == Durability.parse(given)
    with suppress(Unfit):
        assert parse_wait(given) >= 0
    with suppress(Unfit):
        assert read_seconds(given) >= 0
    for believed in (False, True):
        made, theirs = request_ids([(b"x-request-id", data)], believed=believed)
        assert SANE_ID.fullmatch(made)
        assert not theirs or (SANE_ID.fullmatch(theirs) and not believed)


FORWARDED = {b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"}
PROXIES = Proxies((ip_network("10.0.0.0/8"), ip_network("fd00::/8")))


def fuzz_forwarded(data: bytes) -> None:
    lines = [line.partition(b":")[::2] for line in data.split(b"\n")]
    headers = [(name.lower(), value.strip()) for name, value in lines]
    for peer in ("10.1.2.3", "192.0.2.1"):
        origin = PROXIES.origin(peer, headers)
        assert str(ip_address(origin.client)) == origin.client
        assert not FORWARDED & {name for name, _ in origin.headers}
        assert peer != "192.0.2.1" or (origin.client == peer and origin.scheme is None)


class _Bytes:
    """A socket that has some bytes to give, in pieces of `step`."""

    def __init__(self, data: bytes, step: int) -> None:
        self.data = data
        self.step = step

    async def recv(self, most: int, /) -> bytes:
        found, self.data = self.data[: min(most, self.step)], self.data[min(most, self.step) :]
        return found


def fuzz_proxy_protocol(data: bytes) -> None:
    ends = []
    for step in (1, 5, 1 << 20):
        source = _Bytes(data, step)
        try:
            client = finish(read_header(source))
            assert client is None or str(ip_address(client)) == client
            ends.append((client, source.data))
        except BadProxyHeader:
            ends.append(("refused", b""))
    assert ends[0] == ends[1] == ends[2], "what is read does not depend on how it comes"


def finish(coroutine: Awaitable[Any]) -> Any:
    """Return what a coroutine returns that never really waits."""
    try:
        next(coroutine.__await__())
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")


def fuzz_head(data: bytes) -> None:
    """Compare the pull lane with the server that takes over from it: what the lane answers, h11 must read in the same way."""
    end = data.find(b"\r\n\r\n")
    if not 0 <= end + 4 <= HEAD_MOST or end < 0:
        return
    whole, heads = data[: end + 4], Heads("192.0.2.1", PROXIES)
    try:
        head = heads.read(whole)
    except NotHere:
        return
    # What was remembered means what it meant.
    assert _told(heads.read(whole)) == _told(head)
    other = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_MOST)
    other.receive_data(whole)
    event = other.next_event()
    assert isinstance(event, h11.Request), event
    raw_path, _, query = bytes(event.target).partition(b"?")
    request = head.request
    assert (event.method.decode(), path_of(raw_path), query_of(query)) == (request.method, request.path, request.query)
    origin = PROXIES.origin("192.0.2.1", [(bytes(name), bytes(value)) for name, value in event.headers])
    assert headers_of(origin.headers) == request.headers
    assert isinstance(other.next_event(), h11.EndOfMessage), "there is no body"


def _told(head: Head) -> object:
    return evolve(head, request=evolve(head.request, id=""))


def fuzz_authorization(data: bytes) -> None:
    with suppress(Malformed):
        match read_authorization(text(data)):
            case Basic(name, password):
                assert name.isprintable()
                assert password.isprintable()
                assert ":" not in name
            case Bearer(token):
                assert token
                assert token.isascii()


def fuzz_key(data: bytes) -> None:
    with suppress(RegistryError):
        key = read_key(Request("PUT", "/", headers={HEADER: text(data)}))
        assert key is not None
        assert 0 < len(key) <= LONGEST_KEY
        assert key.isascii()
        assert key.isprintable()
        quoted = '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'
        assert read_key(Request("PUT", "/", headers={HEADER: quoted})) == key
        assert identify(key, "", "a", "b", ("b",), DIGEST, "k") != identify(key, "a", "", "b", ("b",), DIGEST, "k")


def fuzz_scopes(data: bytes) -> None:
    asked = read_scopes(data.decode("utf-8", "replace").split("\n"))
    assert len(asked.repositories) <= MOST
    for name, actions in asked.repositories.items():
        assert is_name(name)
        # What a challenge repeats must not end the header's value, nor the header.
        value = dict(bearer("https", "registry.example.com", [Need(name, tuple(actions))]))["www-authenticate"]
        assert value.count('"') == 6
        assert value.isprintable()


class _Nowhere:
    """A database that is away."""

    async def fetch(self, *_arguments: object, **_more: object) -> Any:
        raise DatabaseUnavailable("away")


def _tokens() -> tuple[Tokens, Ed25519PrivateKey]:
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    keyring = Keyring(cast("Database", _Nowhere()), cast("Sealer", None), 60.0, lambda: 1000.0)
    keyring._public = {"known": (key.public_key(), 1e12)}
    return Tokens(keyring, "registry.example.com", lambda: 1000.0), key


TOKENS, KEY = _tokens()
PULL = {"type": "repository", "name": "a", "actions": ["pull"]}


def signed(claims: dict[str, object]) -> bytes:
    """Return a token of ours with these claims."""
    standard: dict[str, object] = {"iss": "registry.example.com", "sub": "a", "iat": 990, "exp": 1100}
    return jwt.encode({**standard, **claims}, KEY, algorithm="EdDSA", headers={"kid": "known"}).encode()


def fuzz_token(data: bytes) -> None:
    given = text(data)
    for verify in (TOKENS.verify, TOKENS.verify_refresh):
        with suppress(BadToken):
            finish(verify(given))


def fuzz_form(data: bytes) -> None:
    with suppress(RegistryError):
        form = finish(_form(Request("POST", "/v2/auth", body=_Body(data))))
        read_scopes(form.get("scope", ()))


class _Body:
    """A body that has come already."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    async def receive(self) -> bytes:
        data, self.data = self.data, b""
        return data


def fuzz_hints(data: bytes) -> None:
    with suppress(BadMessage):
        decode(data)


def fuzz_policy(data: bytes) -> None:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return
    with suppress(PolicyInvalid):
        policy = parse_policy(document, ("us", "eu"))
        assert parse_policy(dump_policy(policy), ("us", "eu")) == policy
        policy.for_tag("v1.0")


OIDC = OidcSettings("mock", "https://i.test", "https://i.test", "registry")


def fuzz_provider(data: bytes) -> None:
    """What an identity provider answers: bytes, an object, a device authorisation, a key set, claims."""
    for status in (200, 400):
        try:
            document = read_object(data, status)
        except NoAnswer:
            assert status == 200
            continue
        device = read_device(document)
        if device is not None:
            assert device.uri.startswith("https://")
            assert device.user_code.isprintable()
            assert 1 <= device.interval <= 60
            assert 0 <= device.lifetime <= 3600
        for key in keys_of(document).values():
            assert not {"HS256", "none"} & set(key.algorithms)
        if refuse(document, issuer="https://i.test", client="registry", nonce="n", now=1000.0) is None:
            assert (document["iss"], document["nonce"]) == ("https://i.test", "n")
        name = name_of(document, OIDC)
        assert name is None or is_account(name)
        assert describe(document, OIDC)
        email_of(document, OIDC)


def fuzz_login(data: bytes) -> None:
    """What a login gets back: a handle, a browser's request, a file of logins, the registry's answer."""
    sealer = Sealer("a secret key for tests")
    with suppress(Sealed):
        sealer.unseal(text(data), "login")
    came = read_return(data, "/callback", "state")
    if came is not None:
        assert (came.code is None) is bool(came.error)
        assert came.error.isprintable()
    with suppress(Unfit):
        read_logins(data, "logins.json")
    with suppress(Failed):
        read_answer(200, data)
    given = text(data)
    assert not is_loopback(given) or given.startswith(("http://127.0.0.1:", "http://[::1]:", "http://localhost:"))
    assert not proves(given, "x" * 43)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "accept": fuzz_accept,
    "authorization": fuzz_authorization,
    "content-range": fuzz_content_range,
    "digest": fuzz_digest,
    "form": fuzz_form,
    "forwarded": fuzz_forwarded,
    "head": fuzz_head,
    "hints": fuzz_hints,
    "idempotency-key": fuzz_key,
    "manifest": fuzz_manifest,
    "name": fuzz_name,
    "login": fuzz_login,
    "policy": fuzz_policy,
    "provider": fuzz_provider,
    "proxy-protocol": fuzz_proxy_protocol,
    "range": fuzz_range,
    "scopes": fuzz_scopes,
    "target": fuzz_target,
    "token": fuzz_token,
    "words": fuzz_words,
}

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_DESCRIPTOR = b'{"mediaType":"application/vnd.oci.image.config.v1+json","size":2,"digest":"sha256:' + b"a" * 64 + b'"}'
_OCI = b"application/vnd.oci.image."

SEEDS: dict[str, tuple[bytes, ...]] = {
    "accept": (
        b"*/*;q=0.0, application/*\n{}",
        _OCI + b'manifest.v1+json\n{"manifests":[{"platform":{"os":"linux","architecture":"amd64"},"mediaType":"x","digest":"y"}]}',
    ),
    "authorization": (b"Basic YTpi", b"Bearer a.b.c", b"basic  YTpiOmM= ", b"Basic AAA6"),
    "content-range": (b"0-99", b"5-4", b"0-" + b"9" * 5000),
    "digest": (DIGEST.encode(), b"sha512:" + b"f" * 128, b"0b0f4ad4-1f8b-4bb6-8f3e-0d2a3a4b5c6d", b"sha256:A"),
    "form": (b"grant_type=password&username=a&password=b&scope=repository:a/b:pull", b"a=%00&a=%ff&=&", b"x&" * 200),
    "forwarded": (
        b"x-forwarded-for: 1.2.3.4, 10.0.0.1\nX-Forwarded-Proto: https\nhost: a",
        b"x-forwarded-for: [fe80::1%eth0]:1\nx-forwarded-host: b:1",
    ),
    "head": (
        b"GET /v2/a/manifests/b?n=1 HTTP/1.1\r\nHost: h\r\nRange: bytes=0-1\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n",
        b"GET /v2/ HTTP/1.1\r\nHost: h \r\nA: b \t\r\n\r\n",
        b"HEAD /v2/ HTTP/1.0\r\nHost: h\r\nConnection: keep-alive\r\n\r\n",
        b"GET /v2/\xe4 HTTP/1.1\r\nhost:\t h \r\nA:\x0bb\r\n\r\n",
    ),
    "hints": (
        b'{"v":1,"from":"n","hints":[["wake",["us"]],["forget","r",null,"t"],["heard","t","n"],["placed","d","l"],["x"]]}',
        b'{"v":1,"from":"n","hints":[["seen","us","down","n"],[],[1]]}',
    ),
    "idempotency-key": (b'"8e03978e-40d5-43dd-bc93-6894a57f9324"', b"k" * 128, b'"a \\" \\\\"', b'"a', b"a, b", b""),
    "manifest": (
        _OCI + b'manifest.v1+json\n{"schemaVersion":2,"config":' + _DESCRIPTOR + b',"layers":[' + _DESCRIPTOR
        + b'],"annotations":{"a":"\\u0000","\\ud800":"b"},"subject":' + _DESCRIPTOR + b"}",
        _OCI + b'index.v1+json\n{"schemaVersion":2,"manifests":[' + _DESCRIPTOR + b'],"artifactType":"a/b"}',
    ),
    "name": (b"library/ubuntu", b"a__b/c-d.e", b"latest", b"a" * 300),
    "policy": (b'{"required":["us"],"never":["eu"],"tags":[{"pattern":"v*","locations":["us"]}],"durability":"quorum:2"}',),
    "login": (
        b"GET /callback?state=state&code=c HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /callback?state=state&error=a&error_description=%00 HTTP/1.1\r\n\r\n",
        b"GET http://[/callback?state=state&code=c HTTP/1.1\r\n\r\n",
        b"a1$AAAA",
        b"http://[::1]:65536/a",
        b'{"a": {"account": "a"}}',
    ),
    "provider": (
        b'{"device_code":"d","user_code":"u","verification_uri":"https://i.test/d","expires_in":1e400,"interval":null}',
        b'{"device_code":"d","user_code":"u","verification_uri":"https://i.test/d","expires_in":60,"interval":5}',
        b'{"keys":[{"kty":"RSA","n":"AA","e":"AQAB","kid":1},{"kty":"oct","k":"AA"},{"kty":"EC","crv":"P-256","x":"A","y":"A"}]}',
        b'{"iss":"https://i.test","aud":["registry"],"sub":"1","iat":990,"exp":1100,"nonce":"n","preferred_username":"A@b"}',
        b'{"iss":"https://i.test","aud":[[]],"sub":"1","iat":NaN,"exp":1e999,"azp":{},"preferred_username":["a"]}',
        b"[" * 5000,
    ),
    "proxy-protocol": (
        b"PROXY TCP4 192.0.2.1 203.0.113.1 1 2\r\nGET",
        b"PROXY TCP6 ::1 ::2 1 2\r\n",
        b"PROXY UNKNOWN x\r\n",
        _SIGNATURE + b"\x21\x11\x00\x0c" + bytes(12) + b"rest",
        _SIGNATURE + b"\x20\x00\x00\x00",
    ),
    "range": (b"\x01\x00bytes=0-99", b"\x01\x00bytes=-5", b"\x00\x00bytes=5-", b"\x01\x00bytes = 1 - 2"),
    "scopes": (
        b"repository:a/b:pull,push repository(plugin):c:*",
        b'registry:catalog:*\nrepository:a"b:pull',
        b"repository:a:",
    ),
    "target": (b"/v2/a%2Fb?n=10&last=%C3%A4&n=", b"http://h/v2/?%", b"/%00", b"/%ff?n=" + b"1" * 20),
    "token": (
        signed({"aud": "registry.example.com", "kind": None, "epoch": 1, "access": [PULL, {**PULL, "actions": [[]]}]}),
        signed({"aud": "registry.example.com", "kind": "nobody", "epoch": 1, "access": [1]}),
        signed({"aud": "registry.example.com", "kind": None, "epoch": 1, "access": [], "exp": 1e400}),
        signed({"aud": "registry.example.com/v2/auth", "generation": 1, "token": None}),
        signed({"aud": "registry.example.com/v2/auth", "generation": 1, "token": "x"}),
        b"eyJhbGciOiJub25lIiwia2lkIjoia25vd24ifQ.e30.",
        b"eyJhbGciOiJIUzI1NiIsImtpZCI6MX0.e30.AA",
    ),
    "words": (b"quorum:2", b"quorum:" + b"9" * 5000, b"60s", b"1.5", b"\xb2", b"9" * 5000, b"9" * 400 + b"d"),
}  # fmt: skip
"""What a fuzzer begins with: something right, and something that is almost so."""
