"""What a fault excuses, and the line of the table: from a history and the faults that happened meanwhile. Pure."""

from collections.abc import Collection, Mapping, Sequence

from attrs import field, frozen

from tests.nemesis.faults import Reach, Spell
from tests.nemesis.ground import REDIRECT_BOUND
from tests.nemesis.history import Failure, History, Operation

_FAIL_OVER: Mapping[Reach, float] = {"node": 3.0, "region": 3.0}
"""Seconds until haproxy has left a node that is gone: two probes, a second apart, and what they take."""
_QUICKLY = 20.0
"""Seconds of silence after which every request has ended, well or not."""


@frozen
class Tried:
    """How many were tried, and how many of them failed."""

    tried: int
    failed: int

    @classmethod
    def of(cls, operations: Collection[Operation]) -> "Tried":
        return cls(len(operations), sum(1 for operation in operations if not operation.ok))


@frozen
class Result:
    """One line of the table, and everything that was wrong."""

    name: str
    seconds: float
    streamed: Tried
    """Pulls through nodes that stream, by clients that do not try again."""
    redirected_early: Tried
    """Pulls through nodes that redirect, by such clients, before the probe interval and deadline after the fault had gone by."""
    redirected: Tried
    """The same, all others."""
    pulls: Tried
    """Commands of clients that try again."""
    pushes: Tried
    """The same; deletes count."""
    retried: int
    """Requests of clients that try again, that failed."""
    worst_pull: float
    """Seconds that the longest pull took, its retries included."""
    worst_push: float
    fail_over: float
    """Seconds from the (last) fault to the last request that began and failed while it lasted."""
    converge: float
    """Seconds from the end of the fault until nothing was owed, suspect or ill any more."""
    wrong: list[str] = field(factory=list)
    """What no fault of this kind excuses."""
    errors: list[str] = field(factory=list)
    """Reasons of failures, for people."""


def not_excused(history: History, spells: Sequence[Spell]) -> list[str]:
    """Return the failures that none of these faults excuses."""
    found = []
    began = spells[0].began
    for operation in history.operations:
        who = f"{operation.client} ({operation.door})"
        found += [
            f"{who} waited {failure.silence:.1f} s for: {failure.reason}"
            for failure in operation.failures
            if failure.silence > _QUICKLY and not any(_at_a_store(operation, failure, spell) for spell in spells)
        ]
        if operation.ok:
            continue
        if not operation.retries:
            last = operation.failures[-1] if operation.failures else Failure(operation.began, operation.ended, "")
            if not any(_bare_may_fail(operation, last, spell) for spell in spells):
                found.append(f"{who} failed {last.began - began:.1f} s after the fault: {operation.error}")
        elif not any(_command_may_fail(operation, spell) for spell in spells) and not _out_of_reach(operation, spells):
            found.append(
                f"{who} gave up a {operation.kind} {operation.ended - began:.1f} s after the fault: {operation.error}"
            )
    return found


def _bare_may_fail(operation: Operation, failure: Failure, spell: Spell) -> bool:
    """Say whether a client that does not try again may see this request fail."""
    after = failure.began - spell.began
    if failure.ended < spell.began:
        return False
    reach = spell.fault.reach
    if reach in ("node", "region"):
        return after <= _FAIL_OVER[reach]
    if operation.door == "redirects" and reach == "bytes":
        return True
    return _at_a_store(operation, failure, spell)


def _at_a_store(operation: Operation, failure: Failure, spell: Spell) -> bool:
    """Say whether a client was sent to the store itself before its loss could be known: there nobody fails over, or hangs up."""
    if operation.kind != "pull" or operation.door != "redirects" or spell.fault.reach != "store":
        return False
    if failure.ended < spell.began:
        return False
    return failure.began - spell.began <= REDIRECT_BOUND


def _command_may_fail(operation: Operation, spell: Spell) -> bool:
    """Say whether a command may fail after all its retries."""
    if spell.fault.reach == "database":
        return operation.began < spell.stopped + 1
    return spell.fault.reach == "bytes" and operation.kind == "pull" and operation.door == "redirects"


def _out_of_reach(operation: Operation, spells: Sequence[Spell]) -> bool:
    """Say whether a pull of what only one store has failed because a fault keeps everybody from that store.

    Only where another fault came before or with it: what was pushed then may have had no time, or no node, to be copied. After a
    single one the registry has to have it elsewhere.
    """
    if len(spells) < 2 or operation.kind != "pull" or not operation.failures:
        return False
    last = operation.failures[-1]
    return any(
        spell.began <= last.ended and last.began <= spell.stopped and (last.unavailable_digest or "") in spell.alone
        for spell in spells
    )


def summary(
    name: str, history: History, spells: Sequence[Spell], mended: float, converge: float, wrong: list[str]
) -> Result:
    """Return the line of the table for what happened; `mended` is when the last fault was over."""
    began, last = spells[0].began, spells[-1]
    failures = [(operation, failure) for operation in history.operations for failure in operation.failures]
    pulls, pushes = history.of("pull", "look"), history.of("push", "delete")
    bare = [pull for pull in pulls if not pull.retries]
    redirected = [pull for pull in bare if pull.door == "redirects"]
    early = [
        pull
        for pull in redirected
        if any(spell.began <= pull.ended and pull.began - spell.began < REDIRECT_BOUND for spell in spells)
    ]
    during = [failure.began for _, failure in failures if last.began <= failure.began <= last.stopped]
    return Result(
        name=name,
        seconds=last.stopped - began,
        streamed=Tried.of([pull for pull in bare if pull.door == "streams"]),
        redirected_early=Tried.of(early),
        redirected=Tried.of([pull for pull in redirected if pull not in early]),
        pulls=Tried.of([pull for pull in pulls if pull.retries]),
        pushes=Tried.of(pushes),
        retried=sum(1 for operation, _ in failures if operation.retries),
        worst_pull=max((pull.seconds for pull in pulls), default=0.0),
        worst_push=max((push.seconds for push in pushes), default=0.0),
        fail_over=max(during, default=last.began) - last.began,
        converge=converge,
        wrong=wrong,
        errors=[*(_words(operation, failure, began) for operation, failure in failures), _longest(history, began)],
    )


def _words(operation: Operation, failure: Failure, began: float) -> str:
    took = failure.ended - failure.began
    return f"{failure.began - began:+.2f} s ({took:.2f} s) {operation.client}: {failure.reason[:700]}"


def _longest(history: History, began: float) -> str:
    longest = max(history.operations, key=lambda operation: operation.seconds)
    return f"{longest.began - began:+.2f} s ({longest.seconds:.2f} s) longest: {longest.kind} of {longest.client}"
