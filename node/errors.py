"""Errors that a client may see: one type per code of the distribution spec, mapped to a status in one place.

Source: OCI distribution-spec, "Error Codes"; statuses per endpoint as in its table of failure codes.
"""

import json

from attrs import frozen

from node.answers import Answer, Headers


@frozen
class Code:
    """An error code of the spec, the status it usually goes with and a sentence for people."""

    name: str
    status: int
    message: str


BLOB_UNKNOWN = Code("BLOB_UNKNOWN", 404, "blob unknown to repository")
BLOB_UPLOAD_INVALID = Code("BLOB_UPLOAD_INVALID", 400, "blob upload invalid")
BLOB_UPLOAD_UNKNOWN = Code("BLOB_UPLOAD_UNKNOWN", 404, "blob upload unknown to registry")
RANGE_INVALID = Code("BLOB_UPLOAD_INVALID", 416, "the range does not follow what has been uploaded")
DIGEST_INVALID = Code("DIGEST_INVALID", 400, "provided digest did not match uploaded content")
MANIFEST_BLOB_UNKNOWN = Code("MANIFEST_BLOB_UNKNOWN", 404, "manifest references a manifest or blob unknown to registry")
MANIFEST_INVALID = Code("MANIFEST_INVALID", 400, "manifest invalid")
MANIFEST_UNKNOWN = Code("MANIFEST_UNKNOWN", 404, "manifest unknown to registry")
NAME_INVALID = Code("NAME_INVALID", 400, "invalid repository name")
NAME_UNKNOWN = Code("NAME_UNKNOWN", 404, "repository name not known to registry")
SIZE_INVALID = Code("SIZE_INVALID", 400, "provided length did not match content length")
MANIFEST_TOO_LARGE = Code("SIZE_INVALID", 413, "manifest too large")
BLOB_TOO_LARGE = Code("SIZE_INVALID", 413, "blob too large")
UNAUTHORIZED = Code("UNAUTHORIZED", 401, "authentication required")
DENIED = Code("DENIED", 403, "requested access to the resource is denied")
UNSUPPORTED = Code("UNSUPPORTED", 405, "the operation is unsupported")
TOOMANYREQUESTS = Code("TOOMANYREQUESTS", 429, "too many requests")
TAG_INVALID = Code("MANIFEST_INVALID", 400, "invalid tag")
TAG_IMMUTABLE = Code("TAG_IMMUTABLE", 409, "the tag can be neither moved nor deleted")
UNAVAILABLE = Code("UNAVAILABLE", 503, "the registry cannot do this just now; try again")
PAGINATION_INVALID = Code("UNSUPPORTED", 400, "invalid number of results requested")
NOT_FOUND = Code("UNSUPPORTED", 404, "no such endpoint")


class RegistryError(Exception):
    """A request that cannot be answered as asked, by whose fault the code says. The HTTP edge turns it into an answer.

    `detail` goes into the error body (spec: "unstructured"): it names the field, the value and what would be right.
    """

    def __init__(
        self, code: Code, detail: object = None, *, headers: Headers = (), retry_after: int | None = None
    ) -> None:
        super().__init__(code.name, detail)
        self.code = code
        self.detail = detail
        self.headers = headers if retry_after is None else (*headers, ("retry-after", str(retry_after)))

    def answer(self, request_id: str = "") -> Answer:
        """Return the response with the spec's JSON body."""
        entry: dict[str, object] = {"code": self.code.name, "message": self.code.message}
        if self.detail is not None:
            entry["detail"] = self.detail
        body: dict[str, object] = {"errors": [entry]}
        if request_id:
            body["request_id"] = request_id
        return Answer(
            self.code.status,
            (("content-type", "application/json"), *self.headers),
            json.dumps(body).encode(),
            outcome="error",
        )
