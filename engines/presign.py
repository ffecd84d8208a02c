"""Presigned URLs and signed requests by AWS signature version 4: pure, over HMAC alone, a few microseconds each.

Source: "Authenticating Requests: Using Query Parameters" and "Using the Authorization Header (AWS Signature Version 4)",
Amazon S3 API Reference.
"""

import hashlib
import hmac
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Literal
from urllib.parse import quote

from attrs import field, frozen

Addressing = Literal["path", "virtual"]

LONGEST_EXPIRY = 7 * 24 * 3600
"""Seconds; a store refuses URLs that live longer."""


UNSIGNED = "UNSIGNED-PAYLOAD"
"""Stands for the digest of a body that is not signed."""

STREAMED = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
"""Likewise of a body whose chunks are signed one by one, each when it is there (`sign_chunk`)."""

EMPTY = hashlib.sha256(b"").hexdigest()
"""The digest of no body."""


@frozen(cache_hash=True)
class Credentials:
    """What requests are signed with. `token` belongs to temporary credentials only."""

    access_key: str
    secret_key: str = field(repr=False)
    token: str | None = field(default=None, repr=False)


@frozen(cache_hash=True)
class Target:
    """Where a presigned URL leads: a bucket behind an endpoint, in one of the two ways of addressing it."""

    endpoint: str
    """Scheme and host, with a port unless it is the scheme's own, without a path: `https://s3.example.com:9000`."""
    bucket: str
    region: str
    addressing: Addressing = "path"


def presign(
    target: Target, credentials: Credentials, key: str, *, now: float, expires: int, method: str = "GET"
) -> str:
    """Return a URL that allows `method` on the object `key` for `expires` seconds from `now` (POSIX seconds).

    The holder may add a Range header: it isn't signed. Raises ValueError where `expires` is not within 1 second and 7 days.
    """
    if not 1 <= expires <= LONGEST_EXPIRY:
        raise ValueError(f"a presigned URL lives 1 to {LONGEST_EXPIRY} seconds, not {expires}")
    return _presigned(target, credentials, key, int(now), expires, method)


def shared_moment(now: float, expires: int) -> float:
    """Return the latest moment, not after `now`, as of which all URLs that live `expires` seconds are signed for a while.

    Whoever asks for an object again meanwhile gets the same URL, in 0.5 us instead of 5.
    """
    step = shared_for(expires)
    return now // step * step


def shared_for(expires: int) -> float:
    """Return for how many seconds that is: a twentieth of their life."""
    return max(1.0, expires / 20)


@lru_cache(maxsize=1024)
def _presigned(target: Target, credentials: Credentials, key: str, now: int, expires: int, method: str) -> str:
    """Return the URL of `presign`: who asks for the same thing within a second, or says the same `now`, gets the same."""
    stamp, day = _stamps(now)
    scheme, host, path = place_of(target)
    path += quote(key, safe="/~")
    scope, credential = _scope(credentials.access_key, day, target.region)
    # The order is that of the names, as the canonical request demands.
    query = f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={credential}&X-Amz-Date={stamp}&X-Amz-Expires={expires}"
    if credentials.token is not None:
        query += f"&X-Amz-Security-Token={quote(credentials.token, safe='~')}"
    query += "&X-Amz-SignedHeaders=host"
    request = f"{method}\n{path}\n{query}\nhost:{host}\n\nhost\n{UNSIGNED}"
    signature = _signature(credentials, target.region, stamp, scope, request)
    return f"{scheme}://{host}{path}?{query}&X-Amz-Signature={signature}"


def sign(
    target: Target,
    credentials: Credentials,
    method: str,
    key: str,
    *,
    query: str = "",
    headers: Mapping[str, str] | None = None,
    payload: str,
    now: float,
) -> tuple[str, Mapping[str, str]]:
    """Return the address and all headers of a signed request on the object `key`, at `now` (POSIX seconds).

    `query` is canonical: sorted by name and quoted. `headers` have lower-case names; all are signed. `payload` is the body's
    SHA-256 in hex, or UNSIGNED.
    """
    stamp, day = _stamps(int(now))
    scheme, host, path = place_of(target)
    path += quote(key, safe="/~")
    scope, _ = _scope(credentials.access_key, day, target.region)
    signed = {**(headers or {}), "host": host, "x-amz-content-sha256": payload, "x-amz-date": stamp}
    if credentials.token is not None:
        signed["x-amz-security-token"] = credentials.token
    names = sorted(signed)
    lines = "".join(f"{name}:{signed[name]}\n" for name in names)
    request = f"{method}\n{path}\n{query}\n{lines}\n{';'.join(names)}\n{payload}"
    signature = _signature(credentials, target.region, stamp, scope, request)
    signed["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{scope}, SignedHeaders={';'.join(names)}, Signature={signature}"
    )
    return f"{scheme}://{host}{path}" + (f"?{query}" if query else ""), signed


def sign_chunk(target: Target, credentials: Credentials, stamp: str, before: str, sha256: str) -> str:
    """Return the signature of one chunk of a streamed body, whose digest in hex is `sha256`.

    `stamp` is the request's `x-amz-date`, `before` the signature of the chunk before, of the first one that of the request. The
    last chunk is empty. Source: "Transferring Payload in Multiple Chunks (Chunked Upload)", Amazon S3 API Reference.
    """
    scope, _ = _scope(credentials.access_key, stamp[:8], target.region)
    to_sign = f"AWS4-HMAC-SHA256-PAYLOAD\n{stamp}\n{scope}\n{before}\n{EMPTY}\n{sha256}"
    return hmac.digest(_signing_key(credentials.secret_key, stamp[:8], target.region), to_sign.encode(), "sha256").hex()


def _signature(credentials: Credentials, region: str, stamp: str, scope: str, request: str) -> str:
    """Return the signature of a canonical request."""
    to_sign = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    key = _signing_key(credentials.secret_key, stamp[:8], region)
    return hmac.digest(key, to_sign.encode(), "sha256").hex()


@lru_cache(maxsize=64)
def place_of(target: Target) -> tuple[str, str, str]:
    """Return the scheme, the host as the client will send it, and the path before the key."""
    scheme, _, host = target.endpoint.partition("://")
    if target.addressing == "virtual":
        return scheme, f"{target.bucket}.{host}", "/"
    return scheme, host, f"/{quote(target.bucket, safe='~')}/"


@lru_cache(maxsize=64)
def _scope(access_key: str, day: str, region: str) -> tuple[str, str]:
    """Return what a signature is good for, and the credential parameter that says so, quoted."""
    scope = f"{day}/{region}/s3/aws4_request"
    return scope, quote(f"{access_key}/{scope}", safe="~")


@lru_cache(maxsize=64)
def _stamps(now: int) -> tuple[str, str]:
    moment = datetime.fromtimestamp(now, UTC)
    stamp = moment.strftime("%Y%m%dT%H%M%SZ")
    return stamp, stamp[:8]


@lru_cache(maxsize=64)
def _signing_key(secret_key: str, day: str, region: str) -> bytes:
    """Return the key that all signatures of one day and region share; derived once."""
    key = hmac.digest(f"AWS4{secret_key}".encode(), day.encode(), "sha256")
    for word in (region, "s3", "aws4_request"):
        key = hmac.digest(key, word.encode(), "sha256")
    return key
