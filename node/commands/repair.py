"""`antipode repair --after-restore`: the records against the stores, after the database was restored from a backup."""

import json
from contextlib import AsyncExitStack
from uuid import uuid4

import click
from attrs import asdict

from node.commands.options import config_option, output_option
from node.commands.tools import Desk, Refused, replay_line, teller, work
from node.records.ledger import PostgresLedger
from node.records.members import Membership
from node.records.replay_turn import Overtaken
from node.repair import repair

_EXIT_CODES = """\b
Exit codes:
  0  every location was looked at, and no blob is lost
  1  the database is out of reach, or a location could not be looked at: collection stays paused
  2  the configuration or the command line is wrong; nothing was done
  3  every location was looked at, and what is lost was named
"""


@click.command("repair", epilog=_EXIT_CODES)
@click.option("--after-restore", is_flag=True, required=True, help="The database was restored from a backup.")
@config_option
@output_option
def command(after_restore: bool, config: str | None, output: str) -> None:
    """Compare the records with the stores in both directions, while nodes run, and let collection go on.

    What the stores' journals know and the database does not comes back first: manifests, tags and copies that came after the
    backup; what was deleted since stays deleted. Copies whose objects are gone are healed from others; blobs without any copy
    left are named with the tags that need them. Objects that the database does not know are listed, and adopted as copies where
    their digest proves what they are. No object is deleted. JSON is one object a line.
    """
    assert after_restore

    tell = teller(output)

    async def verb(desk: Desk) -> int:
        member = Membership(uuid4(), (), (), "repair")
        ledger = PostgresLedger(database=desk.database, member=member)
        async with AsyncExitStack() as stack:
            engines = {
                name: await stack.enter_async_context(location.engine.open())
                for name, location in desk.settings.locations.items()
            }
            library = desk.settings.library_namespace
            try:
                report = await repair(desk.database, engines, ledger.mark_suspect, tell, library)
            except Overtaken as error:
                raise Refused(str(error)) from None
        if output == "json":
            click.echo(json.dumps({"kind": "report", **asdict(report)}))
        else:
            click.echo(replay_line(report.replayed))
            click.echo(
                f"{report.copies} copies looked for, {report.gone} gone; {report.adopted} objects adopted, "
                f"{report.unknown} unknown; {report.lost} blobs lost; {report.dead} objects wait to be deleted"
            )
            click.echo("collection goes on" if report.complete else f"not looked at: {', '.join(report.unreachable)}")
        if not report.complete:
            return 1
        return 3 if report.lost else 0

    work(config, verb, changes="repair")
