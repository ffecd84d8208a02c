"""`antipode repository delete`: a whole repository goes."""

import click

from node.api.tags import Means, remove_repository
from node.commands.options import config_option, output_option
from node.commands.tools import EXIT_CODES, Desk, show, work


@click.group("repository", epilog=EXIT_CODES)
def command() -> None:
    """Whole repositories."""


@command.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@config_option
@output_option
def delete(name: str, yes: bool, config: str | None, output: str) -> None:
    """Delete the repository NAME with its tags, their history and its uploads.

    Its tags cannot be restored. What it held is collected when GARBAGE_GRACE is over, unless other repositories hold it too.
    """
    if not yes:
        click.confirm(f"Delete {name} with all its tags?", abort=True, err=True)

    async def verb(desk: Desk) -> None:
        document = await remove_repository(Means(desk.database, desk.settings, desk.hints.publish), name)
        show(document, output, ("deleted", [document]))

    work(config, verb, changes="repository delete")
