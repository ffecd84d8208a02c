"""A drill: one location is treated as down by every node for a while, and a canary image is pushed and pulled meanwhile.

No store is harmed: nodes keep their copies and their probes, and read even from the drilled location where nothing else has a blob.
The drill is a row with an expiry that its leader renews, so that it ends by itself when the leader dies or loses the database.
"""

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import httpx
import trio
from attrs import define, field, frozen

from node.auth.tokens import BadToken
from node.canary import REQUEST, Canary, CanaryFailed, Tally, digest_of, tally
from node.records.drills import Beginning, Begun, begin_drill, debt_of, end_drill, may_begin, renew_drill, where_placed
from node.records.permissions import create_repository
from node.records.postgres import Database
from node.records.removal import delete_repository
from node.records.risk import risk_totals
from replication.ports import Forget, LedgerUnavailable, Publish, Wake

LEASE = 30.0
"""Seconds after which a drill ends whose leader has gone."""

_RENEW = 5.0
_WARM_UP = 3.0
_COPIED = 60.0
_CLEAN_UP = 15.0
_MOST_ERRORS = 20


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
    debt_after: int | None
    """The same at the end of the drill; None if the database could not be asked."""
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
    login: Callable[[str], httpx.Auth] | None = None,
) -> DrillReport:
    """Rehearse the loss of a location. `interrupted` yields when the operator has enough; `say` is told of every step.

    `login` returns what lets a client pull from and push to the canary's repository; None: the registry is open.
    Raises CannotDrill, CanaryFailed, LedgerUnavailable: nothing runs then. Once begun it always returns.
    """
    possible = await may_begin(database, plan.location)
    if possible.outcome is not Begun.BEGUN and not (plan.anyway and possible.outcome is Begun.ONLY_COPIES):
        raise CannotDrill(possible)
    repository = f"antipode-drill/{secrets.token_hex(6)}"
    auth = None if login is None else login(repository)
    async with httpx.AsyncClient(base_url=plan.registry, timeout=REQUEST, trust_env=False, auth=auth) as http:
        canary = Canary(http, database, repository)
        try:
            if auth is not None:
                # The token is for a repository that is there: nobody in particular may make one.
                await create_repository(database, repository, "", None)
            return await _led(database, publish, plan, canary, interrupted, say)
        finally:
            await _clean_up(database, publish, canary, say)


async def _clean_up(database: Database, publish: Publish, canary: Canary, say: Callable[[str], None]) -> None:
    async with _at_the_end(say, f"the canary {canary.repository} is still there: delete it"):
        await delete_repository(database, canary.repository)
    publish(Forget(canary.repository))


@asynccontextmanager
async def _at_the_end(say: Callable[[str], None], otherwise: str) -> AsyncIterator[None]:
    """Do in time what has to be done even when all else is cancelled; say what is the case where the database is away."""
    reason: str | None = f"no answer within {_CLEAN_UP:g} s"
    with trio.move_on_after(_CLEAN_UP, shield=True):
        try:
            yield
            reason = None
        except LedgerUnavailable as error:
            reason = str(error)
    if reason is not None:
        say(f"{otherwise}; the database is away ({reason})")


async def _led(
    database: Database,
    publish: Publish,
    plan: DrillPlan,
    canary: Canary,
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


async def _prepare(database: Database, plan: DrillPlan, canary: Canary) -> None:
    """Push the canary, wait until it has its copies, and pull it for a moment as a measure."""
    try:
        with trio.fail_after(REQUEST):
            await canary.push("canary", canary.layer)
    except (httpx.HTTPError, trio.TooSlowError, BadToken) as error:
        raise CanaryFailed(f"{plan.registry}: {type(error).__name__}: {error}".rstrip(": ")) from error
    with trio.move_on_after(_COPIED):
        while True:
            places = await where_placed(database, digest_of(canary.layer))
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
        async with _at_the_end(
            say, f"{plan.location} is down for the nodes until the drill ends by itself, within {LEASE:g} s"
        ):
            await end_drill(database, name)
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
) -> tuple[int | None, float | None]:
    """Wait until the location is owed no more than before; return what it was owed at first, and the seconds that took.

    Gives up after `plan.settle`, when the operator has enough, and when the database has been away for as long as a drill lasts
    without its leader.
    """
    began, first, converged = trio.current_time(), None, None
    answered = began
    with trio.move_on_after(plan.settle):
        async with trio.open_nursery() as nursery:

            async def give_up() -> None:
                async for _ in interrupted:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(give_up)
            while converged is None and trio.current_time() - answered < LEASE:
                try:
                    debt = await debt_of(database, plan.location)
                except LedgerUnavailable as error:
                    course.abort(f"the database is away: {error}")
                else:
                    answered = trio.current_time()
                    first = debt if first is None else first
                    if debt <= debt_before:
                        converged = answered - began
                await trio.sleep(0 if converged is not None else 0.5)
            nursery.cancel_scope.cancel()
    return first, converged
