"""The wait API: whether an image has arrived in a location, answered now or as soon as it has."""

import re
from collections.abc import Mapping

import trio
from attrs import frozen

from node.api.frame import Json, Parameters, Problem, parse_flag, timestamp
from node.config.values import Unfit, parse_duration
from node.names import is_name, is_tag
from node.records.closures import ask_for_copies, read_closure
from node.registry import Registry
from node.waiting import Subject, TooManyWaiting, Vanished
from replication.arrival import Arrival, Status, arrival
from replication.closure import COUNTING, Closure
from replication.digests import BadDigest, Digest
from replication.ports import Wake

_NUMBER = re.compile(r"\d+(\.\d*)?|\.\d+", re.ASCII)

MOST_WAIT = 300.0
"""Seconds that one request blocks at most; a client that wants to wait longer asks again."""

_RETRY_AFTER = 5


@frozen
class _Question:
    """A request, read."""

    location: str
    wait: float
    referrers: bool
    request: bool


async def replication_of(
    registry: Registry, name: str, reference: str, query: Mapping[str, tuple[str, ...]], who: str
) -> Json:
    """Return the status of a manifest's closure in a location: of the digest that `reference` names when `who` calls this.

    Parameters: `location`; `wait`, how long to block until it is present, not_required or impossible (at most 5 minutes, by default
    not at all); `referrers=true` takes in what is attached; `request=true` asks for copies that no policy wants, to be kept for
    WANTED_RETENTION. Raises Problem, RegistryError (429), LedgerUnavailable.
    """
    question = _read(registry, query)
    if not is_name(name) or not (is_tag(reference) or _is_digest(reference)):
        raise _unknown(name, reference)
    began = trio.current_time()
    locations = (question.location,)
    async with registry.gates.api.enter(who):
        facts = await read_closure(
            registry.database,
            name,
            reference,
            locations=locations,
            referrers=question.referrers,
            replicate=registry.settings.replicate,
        )
    if facts is None:
        raise _unknown(name, reference)
    subject = Subject(name, facts.digest, question.referrers, locations)
    answer = _arrival(registry, facts, question.location)
    requested = question.request and _may_request(facts, answer, question.location)
    if requested:
        async with registry.gates.api.enter(who):
            await _request(registry, subject, question.location)
    if requested or (question.wait and not answer.settled):
        facts = await _wait(registry, subject, max(0.0, began + question.wait - trio.current_time()), who)
        answer = _arrival(registry, facts, question.location)
    return {
        "repository": name,
        "reference": reference,
        "digest": facts.digest,
        "location": question.location,
        "referrers": question.referrers,
        **_describe(answer, facts, question.location),
        "waited_seconds": round(trio.current_time() - began, 3),
    }


def _read(registry: Registry, query: Mapping[str, tuple[str, ...]]) -> _Question:
    states = registry.states()

    def known(text: str) -> str:
        if text in states:
            return text
        raise Unfit(f"known locations are {', '.join(sorted(states))}")

    parameters = Parameters(query)
    location = parameters.required("location", known)
    wait = parameters.optional("wait", parse_wait, 0.0)
    referrers = parameters.optional("referrers", parse_flag, False)
    request = parameters.optional("request", parse_flag, False)
    parameters.check()
    assert location is not None
    return _Question(location, min(wait, MOST_WAIT), referrers, request)


def parse_wait(text: str) -> float:
    """Return the seconds that a text such as `60s`, `10m` or `90` says. Raises Unfit."""
    return parse_duration(float(text) if _NUMBER.fullmatch(text) else text)


def _is_digest(reference: str) -> bool:
    try:
        Digest.parse(reference)
    except BadDigest:
        return False
    return True


def _unknown(name: str, reference: str) -> Problem:
    return Problem(404, "no such manifest", f"the registry has no {reference[:160]!r} in a repository {name[:160]!r}")


def _may_request(facts: Closure, answer: Arrival, location: str) -> bool:
    """Return whether asking for copies can do anything: they count as wanted from then on, also those that are there already."""
    return answer.status is not Status.IMPOSSIBLE and facts.places[location].state in COUNTING


async def _request(registry: Registry, subject: Subject, location: str) -> None:
    asked = await ask_for_copies(
        registry.database,
        subject.repository,
        subject.digest,
        locations=(location,),
        keep={location: registry.settings.wanted_retention},
        referrers=subject.referrers,
    )
    if asked.locations:
        registry.hints.publish(Wake(asked.locations))


async def _wait(registry: Registry, subject: Subject, seconds: float, who: str) -> Closure:
    location = subject.locations[0]

    def settled(facts: Closure) -> bool:
        # What settles a question is in the facts alone: a board does not change it.
        return arrival(facts, location, {}, 0.0).settled

    try:
        return await registry.waiting.until(subject, settled, seconds, who)
    except TooManyWaiting as error:
        headers = (("retry-after", str(_RETRY_AFTER)),)
        raise Problem(503, "too many are waiting", str(error), headers=headers) from error
    except Vanished as error:
        raise _unknown(subject.repository, subject.digest) from error


def _arrival(registry: Registry, facts: Closure, location: str) -> Arrival:
    return arrival(facts, location, registry.watcher.board, trio.current_time())


def _describe(answer: Arrival, facts: Closure, location: str) -> Json:
    estimate = answer.estimate
    return {
        "status": answer.status.value,
        "reason": answer.reason or None,
        "required": facts.places[location].required,
        "absent_manifests": facts.absent,
        "blobs": answer.blobs,
        "bytes": answer.size,
        "missing_blobs": answer.missing_blobs,
        "missing_bytes": answer.missing_bytes,
        "estimate_seconds": None if estimate is None else round(estimate, 3),
        "queue_position": answer.queue_position,
        "bytes_ahead": answer.bytes_ahead,
        "last_error": answer.last_error,
        "since": timestamp(answer.since),
        "as_of": timestamp(facts.now),
    }
