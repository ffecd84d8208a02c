"""`antipode location`: stores that come and go while pushes go on."""

from collections.abc import Awaitable, Callable, Sequence

import click
import trio
from rich.progress import Progress, TaskID

from node.api.frame import Json
from node.api.locations import change_location, get_location, get_locations
from node.commands.options import config_option, output_option
from node.commands.replication import run_backfill
from node.commands.tools import EXIT_CODES, Desk, Refused, progress_bar, show, size, work
from node.config.values import say_duration
from node.records.awaited import Awaited, list_awaited
from node.records.held_up import list_held_up
from node.records.locations import LocationLine, apply_defaults, list_locations
from node.records.members import Knowing, default_locations, enrol_locations, what_nodes_know
from node.records.postgres import Database
from replication.model import LocationState

_LOOK_AGAIN = 1.0
_ASK_WHO_IS_AWAY = 10.0
"""Seconds between two looks at what is waited for, which cost more."""

_SAY_AGAIN = 60.0
"""Seconds after which what is waited for is said once more, as long as that is so."""

_PATIENCE = 60.0
"""Seconds that the nodes may take to be restarted with a location, one after the other."""

EXIT_STUCK = 3

_ADD_EXIT_CODES = (
    EXIT_CODES
    + """\
  3  with --wait: no node has the location in its configuration, so that nobody copies anything there
"""
)

_DRAIN_EXIT_CODES = (
    EXIT_CODES
    + """\
  3  with --wait: all that is left are blobs that nothing can move
"""
)


@click.group("location", epilog=EXIT_CODES)
def command() -> None:
    """Add, pause, drain and remove locations, while pushes and pulls go on.

    \b
      active -> draining -> drained -> removed
      active <-> paused
    """  # noqa: D301 - click needs the control character, which marks text that stays as it is


@command.command("list")
@config_option
@output_option
def list_all(config: str | None, output: str) -> None:
    """List the locations with their states and what is there."""

    async def verb(desk: Desk) -> None:
        document = await get_locations(desk.database)
        rows = document["locations"]
        assert isinstance(rows, list)
        table = [
            {
                "location": row["name"],
                "state": row["state"],
                "default": row["default"],
                "blobs": row["blobs"],
                "only here": f"{row['sole_blobs']} ({size(row['sole_bytes'])})",
                "suspect": row["suspect_blobs"],
                "unproven": row["unproven"],
                "owed": f"{row['owed_blobs']} ({size(row['owed_bytes'])})",
                "uploads": row["uploads"],
                "dead objects": row["dead_objects"],
            }
            for row in rows
        ]
        show(document, output, ("locations", table))

    work(config, verb)


@command.command(epilog=_ADD_EXIT_CODES)
@click.argument("name")
@click.option("--default/--no-default", default=False, help="Make it one of the default locations, too.")
@click.option("--wait", is_flag=True, help="Stay until all that is owed to it is there.")
@config_option
def add(name: str, default: bool, wait: bool, config: str | None) -> None:
    """Make NAME, which the configuration already has, a location, and schedule what it must hold.

    One that was removed comes back. The nodes must run with a configuration that has it: they do the copying. With a policy that
    names it, or with --default, everything that is required there is owed at once.

    Where no node has it, that is said, and --wait gives them a minute to be restarted. What --wait waits for because it is away,
    NAME itself or a location that has what NAME lacks, is named on standard error each minute, with the reason.
    """

    async def verb(desk: Desk) -> int:
        if name not in desk.settings.locations:
            known = ", ".join(desk.settings.locations)
            raise Refused(f"{name}: DISTRIBUTED_STORAGE_CONFIG has no such location; it has {known}")
        defaults = await default_locations(desk.database)
        await enrol_locations(desk.database, [name], defaults or desk.settings.default_locations)
        await change_location(desk.database, desk.hints.publish, name, LocationState.ACTIVE.value)
        if default:
            await apply_defaults(desk.database, sorted({*defaults, name}))
        found = await run_backfill(desk)
        line = await _line(desk, name)
        click.echo(
            f"{name} is active: {line.owed_blobs} blobs, {size(line.owed_bytes)}, are owed to it ({found.owed} new)"
        )
        if lacking := lacking_text(name, await what_nodes_know(desk.database)):
            click.echo(lacking, err=True)
        if name in desk.settings.default_locations and name not in (await default_locations(desk.database) or (name,)):
            click.echo(
                f"{name} is no default location yet, so that only policies and requests owe it anything: all live nodes must have "
                "it in DISTRIBUTED_STORAGE_DEFAULT_LOCATIONS; or give --default",
                err=True,
            )
        if not wait:
            return 0
        if not await _until_copied(desk, name):
            click.echo(f"gave up waiting after {_PATIENCE:g} s; what is owed to {name} stays owed", err=True)
            return EXIT_STUCK
        click.echo(f"{name} holds {(await _line(desk, name)).blobs} blobs; nothing is owed to it")
        return 0

    work(config, verb, changes="location add")


@command.command(epilog=_DRAIN_EXIT_CODES)
@click.argument("name")
@click.option("--wait", is_flag=True, help="Stay until it is drained, or only blobs are left that nothing can move.")
@config_option
@output_option
def drain(name: str, wait: bool, config: str | None, output: str) -> None:
    """Stop new writes to NAME and copy elsewhere what is only there; it becomes *drained* by itself.

    Of what is elsewhere, too, one copy is read to its end, and healed where it is not right: that may take as long as a copy of
    everything that is in NAME, and goes on wherever nodes are stopped.

    A blob of which no copy is trusted anywhere is copied if it is right. If it is not, nothing can move it: it keeps NAME until it
    is pushed again, or the images that need it are deleted. So does one that policies let no other location have, until they do.

    A blob that needs a location which is away, because its store is down or it is paused, waits for that one, and so does --wait.
    """

    async def verb(desk: Desk) -> int:
        document = await change_location(desk.database, desk.hints.publish, name, LocationState.DRAINING.value)
        await run_backfill(desk)
        if wait and document["state"] != LocationState.DRAINED.value:
            await _until(desk, name, f"draining {name}", lambda line: line.unproven, _held_up, LocationState.DRAINED)
            document = await get_location(desk.database, name)
        _tell(document, output)
        return EXIT_STUCK if wait and document["state"] != LocationState.DRAINED.value else 0

    work(config, verb, changes="location drain")


def _simple(verb_name: str, state: LocationState, text: str) -> None:
    @command.command(verb_name, help=text)
    @click.argument("name")
    @config_option
    @output_option
    def change(name: str, config: str | None, output: str) -> None:
        async def verb(desk: Desk) -> None:
            _tell(await change_location(desk.database, desk.hints.publish, name, state.value), output)

        work(config, verb, changes=f"location {verb_name}")


_simple(
    "pause",
    LocationState.PAUSED,
    "Keep NAME out for maintenance: not read, not written, not copied to; what is owed to it waits, and nothing is copied "
    "elsewhere because of it. Blobs that are only there cannot be pulled meanwhile.",
)
_simple("resume", LocationState.ACTIVE, "Take NAME back after a pause; what is owed to it is copied.")
_simple(
    "activate",
    LocationState.ACTIVE,
    "Make NAME active again: after a pause, during a drain, or after it was removed.",
)
_simple(
    "remove",
    LocationState.REMOVED,
    "Take NAME, which is draining or drained, out for good. Refused while any blob has no copy elsewhere that was made, or read "
    "and was right, since the drain began. Its bucket is left as it is.",
)


def _tell(document: Json, output: str) -> None:
    if output == "json":
        show(document, output)
        return
    click.echo(f"{document['name']} is {document['state']}")
    # What nothing can move is told apart.
    stuck = _count(document, "stuck_blobs")
    only, unproven = (_count(document, key) - stuck for key in ("only_copies", "unproven"))
    suspect = _count(document, "suspect_blobs")
    draining = document["state"] == LocationState.DRAINING.value
    if only > 0 and draining:
        click.echo(f"{only} blobs are only there and are copied elsewhere first")
    if suspect:
        click.echo(f"of {suspect} blobs no copy is trusted anywhere: they are copied if they are right")
    if unproven > 0 and draining:
        click.echo(f"{unproven} blobs have no copy elsewhere that was made or read since")
    waits_for = document["waits_for"]
    assert isinstance(waits_for, list)
    for at in waits_for:
        click.echo(_say_wait(at["blobs"], at["location"], at["away_for"], paused=at["paused"]))
    if stuck:
        _tell_stuck(document, stuck)


def _tell_stuck(document: Json, count: int) -> None:
    stuck = document["stuck"]
    assert isinstance(stuck, list)
    table = [
        {
            "digest": blob["digest"],
            "repositories": ", ".join(blob["repositories"]),
            "last error": blob["error"],
            "failing for": None if blob["failing_for"] is None else say_duration(round(blob["failing_for"])),
        }
        for blob in stuck
    ]
    show(document, "table", ("nothing can move", table))
    more = f", of which these are the first {len(stuck)}," if len(stuck) < count else ""
    click.echo(
        f"{count} blobs{more} keep {document['name']}: nothing can copy them elsewhere. That is still retried. Push "
        "again what no copy is trusted of, let another location have what policies shut in, or delete the images that need them"
    )


def _say_wait(blobs: int, location: str, away_for: float | None, *, paused: bool, reason: str | None = None) -> str:
    why = (
        "which is paused"
        if paused
        else "which failed when they were copied last"
        if away_for is None
        else f"which has been away for {say_duration(round(away_for))}"
    )
    return f"{blobs} blobs wait for {location}, {why}" + (f": {reason}" if reason else "")


def _count(document: Json, key: str) -> int:
    value = document[key]
    assert isinstance(value, int)
    return value


def lacking_text(name: str, nodes: Sequence[Knowing]) -> str | None:
    """Return why nobody copies anything to a location, and what would be right; None where somebody does, or may."""
    right = f"(re)start the nodes with a configuration whose DISTRIBUTED_STORAGE_CONFIG has {name}"
    if not nodes:
        return f"no node runs, so nothing is copied to {name}: {right}"
    known: set[str] = set()
    for node in nodes:
        # One of a release before does not say what it has.
        if node.locations is None or name in node.locations:
            return None
        known.update(node.locations)
    running = "the one node that runs has" if len(nodes) == 1 else f"the {len(nodes)} nodes that run have"
    return f"no node has {name}, so nothing is copied there: {running} {', '.join(sorted(known))}; {right}"


async def _until_copied(desk: Desk, name: str) -> bool:
    """Show how much is owed until it is nothing; False when no node has had the location in its configuration for a while."""
    given_up, known = False, trio.Event()

    async def watch(waiting: trio.CancelScope) -> None:
        nonlocal given_up
        since = trio.current_time()
        while trio.current_time() < since + _PATIENCE:
            if lacking_text(name, await what_nodes_know(desk.database)) is None:
                since = trio.current_time()
                known.set()
            await trio.sleep(_LOOK_AGAIN)
        given_up = True
        waiting.cancel(reason="no node has the location")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, nursery.cancel_scope)
        # Where nobody has it, that nothing is owed yet does not say that all is there.
        await known.wait()
        await _until(desk, name, f"copying to {name}", lambda line: line.owed_blobs, list_awaited)
        nursery.cancel_scope.cancel(reason="nothing is owed")
    return not given_up


async def _line(desk: Desk, name: str) -> LocationLine:
    return next(line for line in await list_locations(desk.database) if line.name == name)


async def _held_up(database: Database, name: str) -> Sequence[Awaited]:
    held_up = await list_held_up(database, name)
    return [Awaited(at.location, at.paused, at.away_for, at.blobs) for at in held_up.waits_for]


async def _until(
    desk: Desk,
    name: str,
    text: str,
    left: Callable[[LocationLine], int],
    who: Callable[[Database, str], Awaitable[Sequence[Awaited]]],
    state: LocationState | None = None,
) -> None:
    """Show how much is left until it is nothing, and the location in the `state`, if one is given.

    Returns, too, when nothing is left but what nothing can move. What only waits for a location that is away may yet go: `who` is
    waited for is said each time that it changes, and once a minute.
    """
    with progress_bar() as bar:
        task: TaskID | None = None
        told: frozenset[tuple[str, bool]] = frozenset()
        asked = said = float("-inf")
        while True:
            line = await _line(desk, name)
            remaining = left(line)
            task = _advance(bar, task, text, remaining)
            if remaining == line.stuck_blobs and (remaining or state in (None, line.state)):
                return
            if remaining and trio.current_time() >= asked + _ASK_WHO_IS_AWAY:
                asked = trio.current_time()
                again = asked >= said + _SAY_AGAIN
                waits_for = await who(desk.database, name)
                for at in waits_for:
                    if again or (at.location, at.paused) not in told:
                        said = asked
                        words = _say_wait(at.blobs, at.location, at.away_for, paused=at.paused, reason=at.reason)
                        bar.console.print(words, soft_wrap=True, markup=False, highlight=False)
                told = frozenset((at.location, at.paused) for at in waits_for)
            await trio.sleep(_LOOK_AGAIN)


def _advance(bar: Progress, task: TaskID | None, text: str, remaining: int) -> TaskID:
    if task is None:
        return bar.add_task(text, total=remaining)
    total = bar.tasks[0].total or 0
    bar.update(task, total=max(total, remaining), completed=max(total, remaining) - remaining)
    return task
