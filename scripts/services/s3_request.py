"""One signed S3 request with the standard library: enough to make a bucket and to see that a gateway really serves."""

import hashlib
import hmac
import http.client
from datetime import UTC, datetime

_EMPTY = hashlib.sha256(b"").hexdigest()


def s3_status(method: str, port: int, path: str, access_key: str, secret_key: str) -> int:
    """Send a request without a body to 127.0.0.1:`port`, signed with AWS Signature Version 4; return the status.

    Raises:
        OSError: no answer within 10 seconds.

    """
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    host = f"127.0.0.1:{port}"
    signed = {"host": host, "x-amz-content-sha256": _EMPTY, "x-amz-date": now}
    names = ";".join(signed)
    canonical = "\n".join([method, path, "", *(f"{name}:{value}" for name, value in signed.items()), "", names, _EMPTY])
    scope = f"{now[:8]}/us-east-1/s3/aws4_request"
    to_sign = "\n".join(["AWS4-HMAC-SHA256", now, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = f"AWS4{secret_key}".encode()
    for word in scope.split("/"):
        key = hmac.digest(key, word.encode(), "sha256")
    signature = hmac.digest(key, to_sign.encode(), "sha256").hex()
    authorization = f"AWS4-HMAC-SHA256 Credential={access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, headers={**signed, "authorization": authorization, "content-length": "0"})
        return connection.getresponse().status
    finally:
        connection.close()
