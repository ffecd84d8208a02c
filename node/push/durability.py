"""Durability on request: a push that is acknowledged, and whose tags move, only when its copies are where it asked for them."""

from collections.abc import Sequence

from attrs import evolve, field, frozen

from node.answers import Request
from node.config.values import Unfit, parse_duration, say_duration
from node.errors import MANIFEST_UNKNOWN, UNAVAILABLE, Code, RegistryError
from node.records.closures import ask_for_copies
from node.records.policies import PolicyRow, read_policy
from node.registry import Registry
from node.waiting import Subject, TooManyWaiting, Vanished
from replication.closure import Closure
from replication.durable import refusal, required_by, satisfies, shortfalls, targets
from replication.policy import Durability, DurabilityInvalid, Policy
from replication.ports import Wake

HEADER = "antipode-durability"
TIMEOUT_HEADER = "antipode-durability-timeout"

DEMAND_INVALID = Code("UNSUPPORTED", 400, "this durability cannot be had")

_RETRY_AFTER = 2
"""Seconds. Copies go on meanwhile, and a repeated PUT finds them."""


@frozen
class Demand:
    """What a push waits for: its header's durability, or its policy's, whichever is stronger; and for how many seconds at most."""

    durability: Durability = field(factory=Durability)
    seconds: float = 0.0

    def under(self, policy: Policy) -> "Demand":
        """Return the demand where the namespace's policy has one, too."""
        return evolve(self, durability=self.durability.stronger(policy.durability))


def read_demand(registry: Registry, request: Request) -> Demand:
    """Return what the headers of a manifest PUT ask for. Raises RegistryError (400) that names the header and what is right."""
    longest = registry.settings.durability_deadline
    text, limit = request.headers.get(HEADER), request.headers.get(TIMEOUT_HEADER)
    try:
        durability = Durability() if text is None else Durability.parse(text)
    except DurabilityInvalid as error:
        raise _refused("Antipode-Durability", text, str(error)) from error
    if limit is None:
        return Demand(durability, longest)
    try:
        seconds = read_seconds(limit)
    except Unfit as error:
        raise _refused("Antipode-Durability-Timeout", limit, str(error)) from error
    return Demand(durability, min(seconds, longest))


def read_seconds(text: str) -> float:
    """Return the seconds of a number or of a text such as `10m`. Raises Unfit."""
    # Twelve digits are more than any wait; thousands would be more than Python converts.
    return parse_duration(int(text) if text.isascii() and text.isdigit() and len(text) <= 12 else text)


async def check_possible(
    registry: Registry, namespace: str, demand: Demand, version: int, policy: Policy
) -> PolicyRow | None:
    """Refuse what could never be had: more copies than there are locations for them. Raises RegistryError (400).

    The policy may be out of date: it is read again before a push is refused, and returned if it is another one by now.
    """
    states = registry.states()
    reason = refusal(demand.under(policy).durability, states, policy.never)
    if reason is None:
        return None
    row = await read_policy(registry.database, namespace)
    if row.version != version:
        return row
    raise _refused("Antipode-Durability, or the namespace's policy", str(demand.under(policy).durability), reason)


async def make_durable(
    registry: Registry, repository: str, digest: str, demand: Demand, patterns: frozenset[str], who: str
) -> None:
    """Copy a committed manifest's closure before other work, and return when it is as durable as was asked.

    `patterns` are the locations that the policy adds for the tags which shall move; `who` waits. Raises RegistryError (503, with
    what is missing and where) when the time is up, or the node is about to stop: the copies go on, and a repeated PUT waits for
    the rest.
    """
    durability = demand.durability

    def done(facts: Closure) -> bool:
        return satisfies(facts, durability, required_by(facts, patterns))

    subject = Subject(repository, digest, whole=False)
    try:
        facts = await registry.durable.until(subject, done, 0.0, who)
        if not done(facts):
            await _ask(registry, repository, facts, durability, patterns)
            facts = await registry.durable.until(subject, done, demand.seconds, who)
    except TooManyWaiting as error:
        reason = f"{error} for copies on this node (DURABILITY_WAITERS); the manifest is stored, its tag does not move"
        raise RegistryError(UNAVAILABLE, {"reason": reason}, retry_after=_RETRY_AFTER) from error
    except Vanished as error:
        reason = "it was deleted while its copies were waited for"
        raise RegistryError(MANIFEST_UNKNOWN, {"name": repository, "digest": digest, "reason": reason}) from error
    if not done(facts):
        raise _too_late(facts, demand, patterns, frank=registry.settings.open_registry)


def chosen(facts: Closure, durability: Durability, patterns: frozenset[str]) -> tuple[str, ...]:
    """Return the locations that get copies for this durability."""
    return targets(durability, required_by(facts, patterns), facts.places)


async def _ask(
    registry: Registry, repository: str, facts: Closure, durability: Durability, patterns: frozenset[str]
) -> None:
    locations = chosen(facts, durability, patterns)
    # What no policy holds there, or none yet because the tag has not moved, must not be trimmed while it is waited for.
    keep = {name: registry.settings.wanted_retention for name in locations if not facts.places[name].required}
    asked = await ask_for_copies(registry.database, repository, facts.digest, locations=locations, keep=keep)
    if asked.locations:
        registry.hints.publish(Wake(asked.locations))


def _too_late(facts: Closure, demand: Demand, patterns: frozenset[str], *, frank: bool) -> RegistryError:
    required = required_by(facts, patterns)
    missing: Sequence[dict[str, object]] = [
        {
            "location": short.location,
            "blobs": short.blobs,
            "bytes": short.size,
            # A store's own words name it and its buckets.
            "last_error": short.last_error if frank else None,
        }
        for short in shortfalls(facts, demand.durability, required, chosen(facts, demand.durability, patterns))
    ]
    detail = {
        "digest": facts.digest,
        "durability": str(demand.durability),
        "missing": missing,
        "reason": f"not as durable as asked within {say_duration(demand.seconds)}. The manifest is stored and can be pulled by "
        "its digest, its copies go on, and its tag has not moved: repeat the PUT to wait for the rest",
    }
    return RegistryError(UNAVAILABLE, detail, retry_after=_RETRY_AFTER)


def _refused(name: str, found: str | None, reason: str) -> RegistryError:
    return RegistryError(DEMAND_INVALID, {"header": name, "found": (found or "")[:80], "reason": reason})
