"""A drill: one location is treated as down by every node for a while, and a canary image is pushed and pulled meanwhile.

No store is harmed: nodes keep their copies and their probes, and read even from the drilled location where nothing else has a blob.
The drill is a row with an expiry that its leader renews, so that it ends by itself when the leader dies or loses the database.
"""

import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import httpx
import trio
from attrs import define, field, frozen

from node.push.reading import OCI_MANIFEST
from node.records.drills import Beginning, Begun, begin_drill, debt_of, end_drill, may_begin, renew_drill, where_placed
from node.records.postgres import Database
from node.records.removal import delete_repository
from node.records.risk import risk_totals
from replication.ports import Forget, LedgerUnavailable, Publish, Wake

LEASE = 30.0
"""Seconds after which a drill ends whose leader has gone."""

_RENEW = 5.0
_WARM_UP = 3.0
_COPIED = 60.0
_REQUEST = 15.0
_CLEAN_UP = 15.0
_MOST_ERRORS = 20
_LAYER = 64 * 1024
"""Bytes: enough to be redirected or streamed from a store, never answered from a node's memory."""


@frozen
class DrillPlan:
    """What is rehearsed. Durations in seconds."""

    location: str
    registry: str
    """URL under which clients reach the registry, or one node."""
    duration: float = 300.0
    balancer: bool = False
    """Whether /health/endtoend is 503 on the nodes that prefer the location, as when it were really down."""
    anyway: bool = False
    """Begin although blobs have their only copy there: they are served from there all the same."""
    settle: float = 600.0
    """How long to wait afterwards for the debt to be what it was."""
    every: float = 0.5
    """From one pull, and one push, to the next."""


@frozen
class Seen:
    """One pull or push of the canary. Times on Trio's clock; `where` is the location that served or took it."""

    kind: str
    began: float
    ended: float
    where: str | None
    error: str | None = None


@frozen
class Tally:
    """What clients saw of one kind. Seconds."""

    tried: int = 0
    errors: int = 0
    slowest: float = 0.0
    failed_over_after: float | None = None
    """From the beginning of the drill to the end of the last that the location served or took; 0 if none was."""


@frozen
class DrillReport:
    """What a drill showed."""

    location: str
    seconds: float
    aborted: str | None
    """Why it ended early, None if it did not."""
    before: tuple[str, ...]
    """Where the canary was served from before the drill."""
    pulls: Tally
    pushes: Tally
    errors: tuple[str, ...]
    lost_blobs: int
    """What would have been lost if the location had died: blobs whose only good copy was there, the most at any look."""
    lost_bytes: int
    debt_before: int
    """Copies that were owed to the location."""
    debt_after: int
    """The same at the end of the drill."""
    converged_after: float | None
    """Until the debt was what it had been; None if that took too long."""

    @property
    def clean(self) -> bool:
        """Whether it ran to its end, no client saw an error, and the debt was paid."""
        return self.aborted is None and not self.pulls.errors + self.pushes.errors and self.converged_after is not None


class CannotDrill(Exception):
    """The drill was not begun. The text says why."""

    def __init__(self, beginning: Beginning) -> None:
        blobs = f" ({beginning.blobs} of them)" if beginning.outcome is Begun.ONLY_COPIES else ""
        super().__init__(f"{beginning.outcome.value}{blobs}")
        self.outcome = beginning.outcome


class CanaryFailed(Exception):
    """The canary image could not be pushed or pulled before the drill: nothing was begun."""


def tally(seen: Sequence[Seen], kind: str, location: str, began: float) -> Tally:
    """Return what clients saw of one kind since the drill `began`. Pure."""
    during = [one for one in seen if one.kind == kind and one.began >= began]
    if not during:
        return Tally()
    there = [one.ended - began for one in during if one.where == location]
    return Tally(
        len(during),
        sum(one.error is not None for one in during),
        max(one.ended - one.began for one in during),
        max(there, default=0.0),
    )


@define
class _Canary:
    """An image in a repository of its own."""

    http: httpx.AsyncClient
    database: Database
    repository: str = field(factory=lambda: f"antipode-drill/{secrets.token_hex(6)}")
    layer: bytes = field(factory=lambda: secrets.token_bytes(_LAYER))
    seen: list[Seen] = field(factory=list)

    async def push(self, tag: str, layer: bytes) -> str | None:
        config = b'{"architecture":"amd64","os":"linux"}'
        for blob in (config, layer):
            answer = await self.http.post(
                f"/v2/{self.repository}/blobs/uploads/", params={"digest": _digest(blob)}, content=blob
            )
            if answer.status_code == httpx.codes.ACCEPTED:
                answer = await self.http.put(answer.headers["location"], params={"digest": _digest(blob)}, content=blob)
            _expect(answer, 201)
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": _descriptor("application/vnd.oci.image.config.v1+json", config),
                "layers": [_descriptor("application/vnd.oci.image.layer.v1.tar", layer)],
            }
        )
        path = f"/v2/{self.repository}/manifests/{tag}"
        _expect(await self.http.put(path, content=manifest, headers={"content-type": OCI_MANIFEST}), 201)
        return next(iter(await where_placed(self.database, _digest(layer))), None)

    async def pull(self) -> str | None:
        path = f"/v2/{self.repository}"
        _expect(await self.http.get(f"{path}/manifests/canary", headers={"accept": OCI_MANIFEST}), 200)
        answer = await self.http.get(f"{path}/blobs/{_digest(self.layer)}")
        where = answer.headers.get("antipode-location")
        if answer.is_redirect:
            answer = await self.http.get(answer.headers["location"])
        _expect(answer, 200)
        if answer.content != self.layer:
            raise CanaryFailed("the blob's bytes are wrong")
        return None if where is None else str(where)

    async def keep(self, kind: str, every: float) -> None:
        """Do it for ever, and note what came of it."""
        while True:
            began = trio.current_time()
            await self.once(kind)
            await trio.sleep_until(max(began + every, trio.current_time()))

    async def once(self, kind: str) -> Seen:
        """Pull, or push a new image, and note what came of it."""
        began, where, error = trio.current_time(), None, None
        try:
            with trio.fail_after(_REQUEST):
                where = await self.pull() if kind == "pull" else await self.push("new", secrets.token_bytes(1024))
        except (httpx.HTTPError, CanaryFailed) as failure:
            error = f"{type(failure).__name__}: {failure}"
        except trio.TooSlowError:
            error = f"no answer within {_REQUEST:g} s"
        seen = Seen(kind, began, trio.current_time(), where, error)
        self.seen.append(seen)
        return seen


def _expect(answer: httpx.Response, status: int) -> None:
    if answer.status_code != status:
        raise CanaryFailed(f"{answer.request.method} was answered {answer.status_code}: {answer.text[:200]}")


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _descriptor(media_type: str, data: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": _digest(data), "size": len(data)}


@define
class _Course:
    """What happens to a drill that runs."""

    stop: trio.Event = field(factory=trio.Event)
    aborted: str | None = None
    lost: tuple[int, int] = (0, 0)

    def abort(self, reason: str) -> None:
        self.aborted = self.aborted or reason
        self.stop.set()


async def drill(
    database: Database,
    publish: Publish,
    plan: DrillPlan,
    interrupted: AsyncIterator[object],
    say: Callable[[str], None],
) -> DrillReport:
    """Rehearse the loss of a location. `interrupted` yields when the operator has enough; `say` is told of every step.

    Raises CannotDrill, CanaryFailed, LedgerUnavailable: nothing runs then. Once begun it always returns.
    """
    possible = await may_begin(database, plan.location)
    if possible.outcome is not Begun.BEGUN and not (plan.anyway and possible.outcome is Begun.ONLY_COPIES):
        raise CannotDrill(possible)
    async with httpx.AsyncClient(base_url=plan.registry, timeout=_REQUEST, trust_env=False) as http:
        canary = _Canary(http, database)
        try:
            return await _led(database, publish, plan, canary, interrupted, say)
        finally:
            with trio.move_on_after(_CLEAN_UP, shield=True):
                await _clean_up(database, publish, canary, say)


async def _clean_up(database: Database, publish: Publish, canary: _Canary, say: Callable[[str], None]) -> None:
    try:
        await delete_repository(database, canary.repository)
    except LedgerUnavailable as error:
        say(f"the canary {canary.repository} is still there: the database is away ({error})")
    publish(Forget(canary.repository))


async def _led(
    database: Database,
    publish: Publish,
    plan: DrillPlan,
    canary: _Canary,
    interrupted: AsyncIterator[object],
    say: Callable[[str], None],
) -> DrillReport:
    say(f"pushing the canary {canary.repository}")
    await _prepare(database, plan, canary)
    before = tuple(sorted({str(one.where) for one in canary.seen if one.kind == "pull"}))
    debt_before = await debt_of(database, plan.location)
    course, name = _Course(), uuid4()
    async with _running(database, publish, plan, name, say):
        began = trio.current_time()
        say(f"{plan.location} is down for the nodes, for {plan.duration:g} s")
        async with trio.open_nursery() as nursery:
            for kind in ("pull", "push"):
                nursery.start_soon(canary.keep, kind, plan.every)
            nursery.start_soon(_lead, database, plan, name, course)
            nursery.start_soon(_watch_operator, interrupted, course)
            with trio.move_on_after(plan.duration):
                await course.stop.wait()
            nursery.cancel_scope.cancel()
        ended = trio.current_time()
    say(f"{plan.location} is back after {ended - began:.0f} s; waiting until it has what it missed")
    debt_after, converged = await _settle(database, plan, debt_before, course, interrupted)
    errors = [f"{one.kind} after {one.began - began:.1f} s: {one.error}" for one in canary.seen if one.error]
    return DrillReport(
        plan.location,
        ended - began,
        course.aborted,
        before,
        tally(canary.seen, "pull", plan.location, began),
        tally(canary.seen, "push", plan.location, began),
        tuple(errors[:_MOST_ERRORS]),
        *course.lost,
        debt_before,
        debt_after,
        converged,
    )


async def _prepare(database: Database, plan: DrillPlan, canary: _Canary) -> None:
    """Push the canary, wait until it has its copies, and pull it for a moment as a measure."""
    try:
        with trio.fail_after(_REQUEST):
            await canary.push("canary", canary.layer)
    except (httpx.HTTPError, trio.TooSlowError) as error:
        raise CanaryFailed(f"{plan.registry}: {type(error).__name__}: {error}".rstrip(": ")) from error
    with trio.move_on_after(_COPIED):
        while True:
            places = await where_placed(database, _digest(canary.layer))
            if plan.location in places and len(places) > 1:
                break
            await trio.sleep(0.2)
    until = trio.current_time() + _WARM_UP
    while trio.current_time() < until:
        seen = await canary.once("pull")
        if seen.error is not None:
            raise CanaryFailed(f"{plan.registry}: {seen.error}")
        await trio.sleep(plan.every)


@asynccontextmanager
async def _running(
    database: Database, publish: Publish, plan: DrillPlan, name: UUID, say: Callable[[str], None]
) -> AsyncIterator[None]:
    beginning = await begin_drill(database, name, plan.location, LEASE, balancer=plan.balancer)
    if beginning.outcome is not Begun.BEGUN:
        raise CannotDrill(beginning)
    try:
        yield
    finally:
        with trio.move_on_after(_CLEAN_UP, shield=True):
            try:
                await end_drill(database, name)
            except LedgerUnavailable as error:
                say(f"the drill ends by itself within {LEASE:g} s: the database is away ({error})")
        publish(Wake((plan.location,)))


async def _lead(database: Database, plan: DrillPlan, name: UUID, course: _Course) -> None:
    """Keep the drill alive, and look what would be lost."""
    while True:
        try:
            if not await renew_drill(database, name, LEASE):
                course.abort("it was ended by somebody else, or was not renewed in time")
                return
            for total in await risk_totals(database, plan.location):
                course.lost = max(course.lost, (total.blobs, total.size))
        except LedgerUnavailable as error:
            course.abort(f"the database is away, so that it ends by itself within {LEASE:g} s: {error}")
            return
        await trio.sleep(_RENEW)


async def _watch_operator(interrupted: AsyncIterator[object], course: _Course) -> None:
    async for _ in interrupted:
        course.abort("interrupted")
        return


async def _settle(
    database: Database, plan: DrillPlan, debt_before: int, course: _Course, interrupted: AsyncIterator[object]
) -> tuple[int, float | None]:
    """Wait until the location is owed no more than before; return what it was owed at first, and the seconds that took."""
    began, first, converged = trio.current_time(), None, None
    with trio.move_on_after(plan.settle):
        async with trio.open_nursery() as nursery:

            async def give_up() -> None:
                async for _ in interrupted:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(give_up)
            while converged is None:
                try:
                    debt = await debt_of(database, plan.location)
                    first = debt if first is None else first
                    if debt <= debt_before:
                        converged = trio.current_time() - began
                        break
                except LedgerUnavailable as error:
                    course.abort(f"the database is away: {error}")
                await trio.sleep(0.5)
            nursery.cancel_scope.cancel()
    return first or 0, converged
