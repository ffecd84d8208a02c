"""What a webhook receives: an event as CloudEvents 1.0 (structured JSON), signed as Standard Webhooks says. Pure."""

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Mapping
from datetime import UTC, datetime

from attrs import field, frozen

KINDS = ("pushed", "deleted", "replicated", "stalled", "location_down", "location_up")
"""What a webhook can ask for."""

REGISTRY_ONLY = ("location_down", "location_up")
"""Kinds that are about no namespace: only webhooks of the whole registry have them."""

CONTENT_TYPE = "application/cloudevents+json"
_PREFIX = "whsec_"
_LEAST_SECRET, _MOST_SECRET = 24, 64


@frozen
class Event:
    """Something that happened. `at`: POSIX seconds."""

    id: str
    kind: str
    subject: str
    at: float
    data: Mapping[str, object]


@frozen
class Message:
    """A request's headers and body."""

    headers: Mapping[str, str]
    body: bytes = field(repr=False)


def make_message(event: Event, *, source: str, secret: bytes, now: float) -> Message:
    """Return what is sent at `now` (POSIX seconds). `source` is the registry's URL.

    The signature covers the id, the time and the body, so that a receiver can refuse what was recorded and sent again.
    """
    body = json.dumps(
        {
            "specversion": "1.0",
            "id": event.id,
            "source": source,
            "type": f"io.antipode.{event.kind}",
            "time": datetime.fromtimestamp(event.at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "subject": event.subject,
            "datacontenttype": "application/json",
            "data": dict(event.data),
        }
    ).encode()
    headers = {
        "content-type": CONTENT_TYPE,
        "webhook-id": event.id,
        "webhook-timestamp": str(int(now)),
        "webhook-signature": sign(secret, event.id, int(now), body),
    }
    return Message(headers, body)


def sign(secret: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """Return the signature (Standard Webhooks, "Signature scheme", symmetric)."""
    signed = b".".join((message_id.encode(), str(timestamp).encode(), body))
    return "v1," + base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()


def write_secret(secret: bytes) -> str:
    """Return a secret as receivers are given it."""
    return _PREFIX + base64.b64encode(secret).decode()


def read_secret(text: str) -> bytes | None:
    """Return the secret that a text spells, None for one that cannot be used (Standard Webhooks: 24 to 64 bytes)."""
    if not text.startswith(_PREFIX):
        return None
    try:
        secret = base64.b64decode(text[len(_PREFIX) :], validate=True)
    except (binascii.Error, ValueError):
        return None
    return secret if _LEAST_SECRET <= len(secret) <= _MOST_SECRET else None
