"""What a container client asks of a registry, request by request, for the load generator to carry out."""

import json
import time
from collections.abc import Callable, Generator
from urllib.parse import urlsplit

from attrs import define, field, frozen

from .images import MANIFEST, Blob, Image
from .wire import Ask, Client, Got, Hang

_ACCEPT = (
    f"Accept: {MANIFEST}, application/vnd.oci.image.index.v1+json, "
    "application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json\r\n"
)


class WrongAnswer(Exception):
    """A server answered something else than what was asked for."""


@frozen
class Target:
    """A registry under load. `realm` is the address of its token service, "" where it asks for no tokens."""

    name: str
    host: str
    port: int
    realm: str = ""


@define
class Samples:
    """Seconds of every unit of work that ended, and the bytes that came with them."""

    seconds: list[float] = field(factory=list)
    received: int = 0
    under_way: float = 0.0
    """What there is of work that has not ended: of a slow server's work most would else be lost when time is up."""

    @property
    def done(self) -> float:
        """Units of work, parts of units counted as such."""
        return len(self.seconds) + self.under_way


Asking = Generator[Ask | Hang, Got, None]


def request(
    target: Target,
    method: str,
    path: str,
    *,
    token: str = "",
    more: str = "",
    body: bytes | None = None,
    keep: bool = False,
) -> Ask:
    """Return one request to a registry."""
    length = "" if body is None else f"Content-Length: {len(body)}\r\nContent-Type: application/octet-stream\r\n"
    bearer = f"Authorization: Bearer {token}\r\n" if token else ""
    head = f"{method} {path} HTTP/1.1\r\nHost: {target.host}:{target.port}\r\nUser-Agent: bench\r\n{bearer}{more}{length}\r\n"
    return Ask(target.host, target.port, head.encode() if not body else [head.encode(), body], method, keep)


def elsewhere(url: str, *, method: str = "GET") -> Ask:
    """Return a request to a whole address."""
    parts = urlsplit(url)
    path = f"{parts.path}?{parts.query}" if parts.query else parts.path
    head = f"{method} {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nUser-Agent: bench\r\n\r\n"
    return Ask(parts.hostname or "", parts.port or 80, head.encode(), method)


def check(got: Got, *statuses: int) -> Got:
    """Return the answer if it has one of these statuses. Raises WrongAnswer."""
    if got.status not in statuses:
        raise WrongAnswer(f"expected {statuses}, got: {got.head[:500]!r} {got.body[:500]!r}")
    return got


def token_for(target: Target, repository: str, actions: str) -> Generator[Ask, Got, str]:
    """Ask the token service for a token as docker does; "" where there is none."""
    if not target.realm:
        return ""
    address = urlsplit(target.realm)
    path = f"{address.path}?service={target.host}:{target.port}&scope=repository:{repository}:{actions}"
    there = Target(target.name, address.hostname or "", address.port or 80)
    got = check((yield request(there, "GET", path, keep=True)), 200)
    return str(json.loads(got.body)["token"])


def pull(target: Target, image: Image, samples: Samples, *, follow: bool) -> Generator[Ask | Hang, Got, int]:
    """Pull an image over new connections, as a client that has nothing of it; return the bytes received."""
    step = 1 / len(image.blobs)
    token = yield from token_for(target, image.repository, "pull")
    name, received = f"/v2/{image.repository}", 0
    head = check((yield request(target, "HEAD", f"{name}/manifests/{image.tag}", token=token, more=_ACCEPT)), 200)
    digest = head.header("docker-content-digest")
    got = check((yield request(target, "GET", f"{name}/manifests/{digest}", token=token, more=_ACCEPT)), 200)
    if got.size != len(image.manifest.data):
        raise WrongAnswer(f"a manifest of {got.size} bytes, not {len(image.manifest.data)}")
    for blob in image.blobs:
        got = check((yield request(target, "GET", f"{name}/blobs/{blob.digest}", token=token)), 200, 307)
        if got.status == 307 and follow:
            got = check((yield elsewhere(got.header("location"))), 200)
        if got.status == 200:
            if got.size != len(blob.data):
                raise WrongAnswer(f"a blob of {got.size} bytes, not {len(blob.data)}")
            received += got.size
        samples.under_way += step
    yield Hang()
    samples.under_way -= 1
    return received


def push(target: Target, image: Image) -> Asking:
    """Push an image as docker does: HEAD, POST, PATCH and PUT of every blob, then the manifest under its tag."""
    token = yield from token_for(target, image.repository, "pull,push")
    name = f"/v2/{image.repository}"
    for blob in image.blobs:
        yield from push_blob(target, image.repository, blob, token)
    body = image.manifest.data
    # One Content-Type only: the body's own is a manifest's.
    head = (
        f"PUT {name}/manifests/{image.tag} HTTP/1.1\r\nHost: {target.host}:{target.port}\r\n"
        f"Content-Type: {MANIFEST}\r\nContent-Length: {len(body)}\r\n"
        + (f"Authorization: Bearer {token}\r\n" if token else "")
        + "\r\n"
    )
    check((yield Ask(target.host, target.port, [head.encode(), body], "PUT", keep=True)), 201)
    yield Hang()


def push_blob(target: Target, repository: str, blob: Blob, token: str = "") -> Asking:
    """Push one blob that is not there yet."""
    name = f"/v2/{repository}"
    check((yield request(target, "HEAD", f"{name}/blobs/{blob.digest}", token=token)), 404)
    got = check((yield request(target, "POST", f"{name}/blobs/uploads/", token=token, body=b"", keep=True)), 202)
    got = check((yield request(target, "PATCH", _path(got), token=token, body=blob.data, keep=True)), 202)
    path = _path(got)
    path += ("&" if "?" in path else "?") + f"digest={blob.digest}"
    check((yield request(target, "PUT", path, token=token, body=b"", keep=True)), 201)


def _path(got: Got) -> str:
    parts = urlsplit(got.header("location"))
    return f"{parts.path}?{parts.query}" if parts.query else parts.path


def for_ever(samples: Samples, work: Callable[[], Generator[Ask | Hang, Got, int | None]]) -> Client:
    """Do one unit of work after the other, and note how long each took."""
    while True:
        began = time.monotonic()
        received = yield from work()
        samples.seconds.append(time.monotonic() - began)
        samples.received += received or 0


def once(samples: Samples, *works: Callable[[], Generator[Ask | Hang, Got, int | None]]) -> Client:
    """Do these units of work, in turn."""
    for work in works:
        began = time.monotonic()
        received = yield from work()
        samples.seconds.append(time.monotonic() - began)
        samples.received += received or 0


def one(ask: Ask, *statuses: int) -> Generator[Ask | Hang, Got, int]:
    """Ask one thing over a connection that stays open."""
    return check((yield ask), *statuses).size
