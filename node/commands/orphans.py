"""`antipode orphans`: objects in a store that the database does not know."""

import time

import click
from attrs import asdict

from node.audit import Orphan, find_orphans
from node.commands.options import config_option, output_option
from node.commands.tools import EXIT_CODES, Desk, Refused, no_such_location, show, size, work
from node.markers import NotOurs, check_marker
from node.records.collect import read_pause
from node.records.repair import read_markers


@click.command("orphans", epilog=EXIT_CODES)
@click.option("--location", required=True, help="The location whose store is listed.")
@click.option("--delete", is_flag=True, help="Delete those that are older than a day.")
@config_option
@output_option
def command(location: str, delete: bool, config: str | None, output: str) -> None:
    """List objects in a location's store, below its storage path, that no row of the database accounts for.

    Nothing is deleted unless --delete is given, and then only what the store says was written more than a day ago, in the store
    whose marker this database knows: to another database, such as a new one, all objects are unknown. Run `antipode repair
    --after-restore` first if the database was restored from a backup.
    """

    async def verb(desk: Desk) -> int:
        settings = desk.settings
        if location not in settings.locations:
            raise no_such_location(location, settings)
        if delete and (reason := await read_pause(desk.database)) is not None:
            raise Refused(f"nothing is deleted before `antipode repair --after-restore`: {reason}")
        found: list[Orphan] = []
        deleted: set[str] = set()
        async with settings.locations[location].engine.open() as engine:
            if delete and (marker := (await read_markers(desk.database)).get(location)) is not None:
                try:
                    await check_marker(engine, marker)
                except NotOurs as error:
                    raise Refused(f"nothing is deleted: {error}") from None
            async for orphan in find_orphans(desk.database, engine, location, time.time()):
                found.append(orphan)
                if delete and orphan.old:
                    await engine.delete(orphan.key)
                    deleted.add(orphan.key)
        document = {
            "location": location,
            "orphans": [{**asdict(orphan), "deleted": orphan.key in deleted} for orphan in found],
            "bytes": sum(orphan.size for orphan in found),
            "deleted": len(deleted),
        }
        rows = [
            {
                "key": orphan.key,
                "size": size(orphan.size),
                "age_seconds": orphan.age,
                "deleted": orphan.key in deleted,
            }
            for orphan in found
        ]
        show(document, output, ("orphans", rows))
        if output == "table" and delete and len(deleted) < len(found):
            click.echo(f"{len(found) - len(deleted)} are younger than a day and stay")
        return 0

    work(config, verb, changes="orphans" if delete else None)
