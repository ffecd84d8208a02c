"""`antipode rescue`: a registry rebuilt in an empty database from its stores."""

import json
from contextlib import AsyncExitStack

import click
from attrs import asdict

from node.commands.options import config_option, output_option
from node.commands.tools import Desk, Refused, progress_bar, replay_line, teller, work
from node.journal.replay import Replayed
from node.records.replay_turn import Overtaken
from node.rescue import NOT_KNOWN, NotEmpty, rescue

_EXIT_CODES = """\b
Exit codes:
  0  every store was looked at, and nothing that the journals know is lost
  1  the database holds a registry or is out of reach, or a store could not be looked at: repeat it with that store
  2  the configuration or the command line is wrong; nothing was done
  3  every store was looked at, and what is lost was named
"""


@click.command("rescue", epilog=_EXIT_CODES)
@config_option
@output_option
def command(config: str | None, output: str) -> None:
    """Rebuild a registry in an empty database from what its stores hold, when the database is lost.

    DB_URI names the new, empty database; no node may run on it. Repositories, manifests, tags, policies and the places of copies
    come from the journals that the nodes keep in every store; copies that the journals do not name yet are found by their digest.
    Nothing is written into the stores. Reads the journals and one object per manifest, lists every store, and reads uploads
    only where a manifest lacks a blob; copies are seen and not read: `antipode verify --location L` reads them. May be cut off
    and repeated. Says at the end what it could not know. JSON is one object a line.
    """
    tell = teller(output)

    async def verb(desk: Desk) -> int:
        settings = desk.settings
        async with AsyncExitStack() as stack:
            engines = {
                name: await stack.enter_async_context(location.engine.open())
                for name, location in settings.locations.items()
            }
            bar = stack.enter_context(progress_bar())
            task = bar.add_task("rescuing", total=None)

            def progress(done: Replayed) -> None:
                said = f"{done.journals} journal objects, {done.copies} copies, {done.manifests} manifests"
                bar.update(task, description=said, completed=done.copies + done.manifests)

            try:
                report = await rescue(
                    desk.database, engines, settings.default_locations, settings.library_namespace, tell, progress
                )
            except (NotEmpty, Overtaken) as error:
                raise Refused(str(error)) from None
        if output == "json":
            click.echo(json.dumps({"kind": "report", **asdict(report), "not_known": NOT_KNOWN}))
        else:
            click.echo(replay_line(report.replayed))
            click.echo(
                f"{report.adopted} copies found by their digest, {report.unknown} objects of no use; "
                f"{report.unverified} copies were seen and not read; "
                f"{report.lost} blobs lost; {report.replayed.untagged} manifests whose tags no journal knows yet"
            )
            click.echo("\nwhat no rescue can know:\n" + "\n".join(f"  - {line}" for line in NOT_KNOWN))
            if report.unreachable:
                click.echo(f"\nnot looked at: {', '.join(report.unreachable)}; repeat the rescue when they are back")
            else:
                click.echo("\nthe registry is rebuilt: start the nodes")
        if report.unreachable:
            return 1
        return 3 if report.lost or report.replayed.missing else 0

    work(config, verb, migrating=True, changes="rescue")
