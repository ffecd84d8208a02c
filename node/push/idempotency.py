"""The header Idempotency-Key of a manifest's PUT and DELETE: what is sent again, by a balancer or a client, is done once. Pure.

Source: draft-ietf-httpapi-idempotency-key-header. Three things differ from it, each so that no push is lost: the same key with
anything else in the request is another request (the draft: 422), a repetition beside the first waits for it (409), and what was
refused may be tried again with the same key (the same refusal), unless the key says that its client never does that.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from uuid import UUID

from attrs import frozen

from node.answers import Request
from node.errors import Code, RegistryError

HEADER = "idempotency-key"
MOST = 128
"""Characters of a key."""

ONE_REQUEST = "once-"
"""How a key begins that stands for one request only, as those that balancers make do: once refused, that stays so."""

KEY_INVALID = Code("UNSUPPORTED", 400, "this idempotency key cannot be used")
REFUSED_BEFORE = Code("DENIED", 409, "another try of this very request was refused, and its key is for no other")

_BARE = re.compile(r"[!#-+\--:<-\[\]-~]+")
"""Visible ASCII without what separates keys, or ends them."""
_QUOTED = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])+)"')
"""A string as structured fields have it (RFC 8941 3.3.3)."""


def read_key(request: Request) -> str | None:
    """Return the key of a request, None without one. Raises RegistryError (400) that names the header and what would be right."""
    text = request.headers.get(HEADER)
    if text is None:
        return None
    quoted = _QUOTED.fullmatch(text)
    key = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted is not None else text
    if len(key) > MOST or (quoted is None and _BARE.fullmatch(text) is None):
        reason = (
            f"write one key of at most {MOST} characters of visible ASCII, best a random one such as a UUID; "
            "one with spaces, commas or semicolons in double quotes"
        )
        raise RegistryError(KEY_INVALID, {"header": "Idempotency-Key", "found": text[:80], "reason": reason})
    return key


@frozen
class Once:
    """What a request is remembered by."""

    id: UUID
    """The same for its repetitions only."""
    final: bool
    """A refusal stands, for all of them."""


def identify(key: str, who: str, repository: str, reference: str, tags: Sequence[str], digest: str, kind: str) -> Once:
    """Return what a manifest PUT of the account `who` is remembered by.

    Of all that is asked for, so that nobody's keys meet anybody else's, and a key that a client uses twice loses no push.
    """
    return _once("manifest", key, who, repository, reference, list(tags), digest, kind)


def identify_delete(key: str, who: str, repository: str, reference: str) -> Once:
    """Return what the DELETE of a tag or manifest is remembered by, likewise."""
    return _once("delete", key, who, repository, reference)


def _once(what: str, key: str, *asked: object) -> Once:
    text = json.dumps([what, key, *asked])
    return Once(UUID(bytes=hashlib.sha256(text.encode()).digest()[:16]), key.startswith(ONE_REQUEST))
