"""Presigned URLs by AWS signature version 4: pure, over HMAC alone, a few microseconds each.

Source: "Authenticating Requests: Using Query Parameters (AWS Signature Version 4)", Amazon S3 API Reference.
"""

import hashlib
import hmac
from datetime import UTC, datetime
from functools import lru_cache
from typing import Literal
from urllib.parse import quote

from attrs import field, frozen

Addressing = Literal["path", "virtual"]

LONGEST_EXPIRY = 7 * 24 * 3600
"""Seconds; a store refuses URLs that live longer."""


@frozen
class Credentials:
    """What requests are signed with. `token` belongs to temporary credentials only."""

    access_key: str
    secret_key: str = field(repr=False)
    token: str | None = field(default=None, repr=False)


@frozen
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
    stamp, day = _stamps(int(now))
    scheme, host, path = _address(target)
    path += quote(key, safe="/~")
    scope, credential = _scope(credentials.access_key, day, target.region)
    # The order is that of the names, as the canonical request demands.
    query = f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={credential}&X-Amz-Date={stamp}&X-Amz-Expires={expires}"
    if credentials.token is not None:
        query += f"&X-Amz-Security-Token={quote(credentials.token, safe='~')}"
    query += "&X-Amz-SignedHeaders=host"
    request = f"{method}\n{path}\n{query}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD"
    to_sign = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    signature = hmac.digest(_signing_key(credentials.secret_key, day, target.region), to_sign.encode(), "sha256").hex()
    return f"{scheme}://{host}{path}?{query}&X-Amz-Signature={signature}"


@lru_cache(maxsize=64)
def _address(target: Target) -> tuple[str, str, str]:
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
