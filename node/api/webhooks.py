"""Webhooks: set, listed, deleted; what they have not been told, and told again."""

import re
import secrets
from collections.abc import Mapping

from node.api.frame import Json, Problem, Wrong, timestamp
from node.api.tags import Means
from node.config.values import show
from node.hooks.addresses import networks, refuse_url
from node.hooks.message import KINDS, REGISTRY_ONLY, read_secret, write_secret
from node.hooks.secrets import keep_secret
from node.names import is_name
from node.records.webhooks import (
    Delivery,
    Webhook,
    delete_webhook,
    list_deliveries,
    list_webhooks,
    read_webhook,
    redeliver,
    write_webhook,
)

MOST_WEBHOOKS = 50
"""Of one namespace, or of the whole registry: every push may write a row for each."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_SECRET_BYTES = 32
_FITTING = 'write "whsec_" and 24 to 64 bytes in Base64, or leave it out and one is made'


async def get_webhooks(means: Means, namespace: str | None) -> Json:
    """Return the webhooks of a namespace, or of the whole registry (None)."""
    return {"webhooks": [_line(line) for line in await list_webhooks(means.database, namespace)]}


async def get_webhook(means: Means, namespace: str | None, name: str) -> Json:
    """Return one webhook, without its secret. Raises Problem (404)."""
    found = await read_webhook(means.database, namespace, name)
    if found is None:
        raise _unknown(name)
    return _line(found)


async def set_webhook(means: Means, namespace: str | None, name: str, body: Mapping[str, object]) -> Json:
    """Make or replace a webhook: `url`, `events`, and if given `secret` and `active`. Raises Problem: 400, 409.

    The answer to the making of one has its secret; nothing shows it later. A webhook that exists keeps its secret unless another
    is given.
    """
    _check(namespace, name)
    given = body.get("secret")
    secret = secrets.token_bytes(_SECRET_BYTES) if given is None else read_secret(str(given))
    raw = body.get("events")
    events = [str(kind) for kind in raw] if isinstance(raw, list) else []
    webhook = Webhook(
        namespace, name, str(body.get("url", "")), tuple(dict.fromkeys(events)), body.get("active") is not False
    )
    wrong = _wrong(means, webhook, secret)
    if wrong or secret is None:
        detail = "; ".join(f"{line.field}: found {line.found}; {line.right}" for line in wrong)
        raise Problem(400, "a webhook that cannot be used", detail, wrong=tuple(wrong))
    done = await write_webhook(
        means.database,
        webhook,
        keep_secret(secret, means.settings.secret_key),
        change_secret=given is not None,
        most=MOST_WEBHOOKS,
    )
    if done == "too many":
        raise Problem(409, "too many webhooks", f"there are {MOST_WEBHOOKS} already: delete one")
    shown = await get_webhook(means, namespace, name)
    return {**shown, "secret": write_secret(secret)} if done == "made" else shown


async def remove_webhook(means: Means, namespace: str | None, name: str) -> Json:
    """Delete a webhook with what it has not been told. Raises Problem (404)."""
    if not await delete_webhook(means.database, namespace, name):
        raise _unknown(name)
    return {"name": name, "deleted": True}


async def get_deliveries(
    means: Means, namespace: str | None, name: str, *, state: str | None = None, after: int = 0, most: int = 100
) -> Json:
    """Return a page of what a webhook has not been told: `state` is "pending", "dead" or None. Raises Problem (404)."""
    await get_webhook(means, namespace, name)
    dead = None if state is None else state == "dead"
    found = await list_deliveries(means.database, namespace, name, dead=dead, after=after, most=most + 1)
    page = found[:most]
    return {
        "deliveries": [_delivery(line) for line in page],
        "next": str(page[-1].id) if len(found) > most else None,
    }


async def deliver_again(means: Means, namespace: str | None, name: str, delivery: int | None) -> Json:
    """Make one delivery due at once, or every dead one (None). Raises Problem (404)."""
    await get_webhook(means, namespace, name)
    due = await redeliver(means.database, namespace, name, delivery)
    if delivery is not None and not due:
        raise Problem(404, "no such delivery", f"{name} has none with the id {delivery}: it was taken, or dropped")
    return {"name": name, "due": due}


def _check(namespace: str | None, name: str) -> None:
    if namespace is not None and (not is_name(namespace) or "/" in namespace):
        raise Problem(400, "not a namespace", f"{namespace[:100]!r}: the first part of a repository's name is needed")
    if not _NAME.fullmatch(name):
        detail = f"{name[:80]!r}: write lower-case letters, digits, '.', '_' and '-', at most 64 characters"
        raise Problem(400, "not a webhook's name", detail)


def _wrong(means: Means, webhook: Webhook, secret: bytes | None) -> list[Wrong]:
    wrong: list[Wrong] = []
    reason = refuse_url(webhook.url, networks(means.settings.webhook_networks))
    if reason is not None:
        wrong.append(Wrong("url", show(webhook.url[:200]), reason))
    known = [kind for kind in KINDS if webhook.namespace is None or kind not in REGISTRY_ONLY]
    odd = [kind for kind in webhook.events if kind not in known]
    if odd or not webhook.events:
        wrong.append(
            Wrong("events", show(", ".join(odd)[:200]) if odd else "nothing", f"write some of {', '.join(known)}")
        )
    if secret is None:
        wrong.append(Wrong("secret", "what is no secret", _FITTING))
    return wrong


def _unknown(name: str) -> Problem:
    return Problem(404, "no such webhook", name[:80])


def _line(webhook: Webhook) -> Json:
    return {
        "namespace": webhook.namespace,
        "name": webhook.name,
        "url": webhook.url,
        "events": list(webhook.events),
        "active": webhook.active,
        "pending": webhook.pending,
        "dead": webhook.dead,
        "oldest": timestamp(webhook.oldest),
    }


def _delivery(line: Delivery) -> Json:
    return {
        "id": line.id,
        "event": line.event,
        "kind": line.kind,
        "subject": line.subject,
        "time": timestamp(line.at),
        "state": "dead" if line.dead else "pending",
        "attempts": line.attempts,
        "last_error": line.last_error,
        "due": None if line.dead else timestamp(line.due),
        "data": dict(line.data),
    }
