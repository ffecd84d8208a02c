"""What the operators' verbs share: the configuration, the database and hints behind it, exit codes, tables and JSON."""

import getpass
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from uuid import uuid4

import click
import trio
from attrs import asdict, evolve, frozen
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from engines.contract import EngineError
from engines.crossing import open_bridge
from node import logs
from node.api.frame import Problem
from node.commands.options import EXIT_CONFIGURATION, EXIT_FAILED, load

# Every verb shows something; the room apart is for those that need nothing else of this one.
from node.commands.tables import show as show
from node.commands.tables import size as size
from node.config.settings import Settings
from node.findings import Finding, Tell
from node.hint_hub import Hub
from node.hints import open_hints
from node.journal.replay import Replayed
from node.names import namespace_of
from node.records.auditlog import Line, write_lines
from node.records.migrate import migrate, migrations
from node.records.postgres import Database, DatabaseMisconfigured, DatabaseUnavailable, TagImmutable, open_database
from node.records.quotas import OverQuota

_FLUSH_SECONDS = 2.0
_BROKEN_SECONDS = 5.0

EXIT_CODES = """\b
Exit codes:
  0  done
  1  refused, or the database or a store is out of reach
  2  the configuration or the command line is wrong; nothing was done
"""


class Refused(Exception):
    """The verb cannot do what it was asked. The text goes to standard error."""

    def __init__(self, text: str, code: int = EXIT_FAILED) -> None:
        super().__init__(text)
        self.code = code


def no_such_location(given: str, settings: Settings) -> Refused:
    """Return what to raise for a `--location` that the configuration has not: the command line is wrong, and no store."""
    known = ", ".join(settings.locations)
    return Refused(f"--location: found {given!r}; DISTRIBUTED_STORAGE_CONFIG has {known}", EXIT_CONFIGURATION)


@frozen
class Desk:
    """What a verb works with."""

    settings: Settings
    database: Database
    hints: Hub


@asynccontextmanager
async def _open_desk(settings: Settings, *, migrating: bool) -> AsyncIterator[Desk]:
    async with open_bridge(), open_database(settings.database_uri, most=4) as database:
        if migrating:
            await migrate(database)
        await _check_schema(database)
        async with open_hints(settings.redis, settings.database_uri, f"cli-{uuid4().hex[:8]}") as hints:
            yield Desk(settings, database, hints)
            # Hints are only hints: what cannot be told in time the nodes find out by themselves.
            with trio.move_on_after(_FLUSH_SECONDS if hints.statistics().published else 0):
                while hints.statistics().sent == 0:  # noqa: ASYNC110 - the hub has no event for it, and the end is near
                    await trio.sleep(0.02)


async def _check_schema(database: Database) -> None:
    needed = max(migration.number for migration in migrations())
    there = await database.fetch_row("SELECT to_regclass('schema_version') IS NOT NULL AS there")
    row = (
        await database.fetch_row("SELECT max(number) AS number FROM schema_version")
        if there and there["there"]
        else None
    )
    found = 0 if row is None else row["number"] or 0
    if found < needed:
        raise Refused(
            f"the database's schema is {found}, this program needs {needed}: start a node of this release first"
        )


def work(
    config: str | None,
    verb: Callable[[Desk], Awaitable[int | None]],
    *,
    migrating: bool = False,
    changes: str | None = None,
    namespace: str | None = None,
    repository: str | None = None,
) -> None:
    """Run a verb over the database that a configuration names, and exit with its code (None is 0); failures are one line.

    `migrating` makes the schema first, as a node that starts does. `changes` is what the audit log calls a verb that changes
    something; its line has the words that were given. A verb that is refused has no line; one that breaks off, by Ctrl-C or because
    something failed, has one that says so, since it may have changed a part. `namespace` or `repository`: what the verb is about,
    where that is one.
    """
    settings = load(config)
    logs.set_up("error")

    async def main() -> int | None:
        async with _open_desk(settings, migrating=migrating) as desk:
            if changes is None:
                return await verb(desk)
            words: dict[str, object] = {"arguments": _arguments(sys.argv[1:])}
            within = namespace if repository is None else namespace_of(repository, settings.library_namespace)
            line = Line(changes, _actor(), within, repository, words)
            try:
                code = await verb(desk)
            except BaseException as error:
                if not all(isinstance(leaf, _REFUSED) for leaf in _leaves(error)):
                    await _write_broken(desk.database, evolve(line, detail={**words, "broken_off": _reason(error)}))
                raise
            try:
                await write_lines(desk.database, [line])
            except DatabaseUnavailable as error:
                if not code:
                    raise
                # The verb has said what went wrong, and its code says more than that of this.
                _say_no_line(error)
            return code

    try:
        code = trio.run(main, strict_exception_groups=True)
    except (Exception, BaseExceptionGroup) as error:
        leaves = list(_leaves(error))
        known = [leaf for leaf in leaves if isinstance(leaf, (*_REFUSED, EngineError, *_DATABASE))]
        if len(known) < len(leaves):
            raise
        for leaf in known:
            click.echo(_line(leaf), err=True)
        code = max(leaf.code if isinstance(leaf, Refused) else EXIT_FAILED for leaf in known)
    sys.exit(code or 0)


async def _write_broken(database: Database, line: Line) -> None:
    """Write the line of a verb that broke off, if that can be done soon."""
    with trio.move_on_after(_BROKEN_SECONDS, shield=True) as scope:
        try:
            await write_lines(database, [line])
        except DatabaseUnavailable as error:
            _say_no_line(error)
    if scope.cancelled_caught:
        _say_no_line(f"no answer within {_BROKEN_SECONDS:g} s")


def _say_no_line(reason: object) -> None:
    click.echo(f"the audit log has no line of this: the database is away ({reason})", err=True)


def _reason(error: BaseException) -> str:
    """Return what broke a verb off, without texts, which may name anything."""
    return ", ".join(sorted({type(leaf).__name__ for leaf in _leaves(error)}))


def _actor() -> str:
    """Return who runs this program, and where: as no account is called."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"cli:{user}@{socket.gethostname()}"


def _arguments(words: list[str]) -> list[str]:
    """Return the command line without the configuration, which says nothing. No verb takes a secret as an argument."""
    kept, skip = [], False
    for word in words:
        if not skip and word != "--config" and not word.startswith("--config="):
            kept.append(word)
        skip = word == "--config"
    return kept


_DATABASE = (DatabaseUnavailable, DatabaseMisconfigured)
_REFUSED = (Refused, Problem, TagImmutable, OverQuota)
"""What is raised where nothing was changed."""


def _line(error: BaseException) -> str:
    if isinstance(error, Problem):
        return f"{error.title}: {error.detail}" if error.detail else error.title
    if isinstance(error, _DATABASE):
        return f"DB_URI: the database cannot be used: {error}"
    if isinstance(error, TagImmutable):
        return f"the tag {error} can be neither moved nor deleted"
    return str(error)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from _leaves(member)
    else:
        yield error


def replay_line(done: Replayed) -> str:
    """Return in one line what came out of the journals."""
    until = "none" if done.until is None else f"{datetime.fromtimestamp(done.until, UTC):%Y-%m-%d %H:%M:%S} UTC"
    return (
        f"{done.journals} journal objects read, last change {until}; back from them: {done.manifests} manifests, "
        f"{done.copies} copies, {done.tags} tags, {done.policies} policies; gone by them: {done.unlinked} manifests, "
        f"{done.copies_gone} copies, {done.tags_deleted} tags, {done.repositories_deleted} repositories; "
        f"{done.missing} manifests are in no store"
    )


def teller(output: str) -> Tell:
    """Return what prints findings as they come: a JSON object a line for programs, a line of text for people."""

    def tell(finding: Finding) -> None:
        if output == "json":
            click.echo(json.dumps(asdict(finding)))
        else:
            where = f" in {finding.location}" if finding.location else ""
            click.echo(f"{finding.kind}{where}: {finding.what}{f' ({finding.text})' if finding.text else ''}")

    return tell


def progress_bar() -> Progress:
    """Return a bar on standard error, silent where that is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
    )
