"""`antipode repository`: listed, and a whole one goes."""

from typing import Any

import click

from node.api.repositories import get_repositories
from node.api.tags import Means, remove_repository
from node.commands.options import config_option, output_option
from node.commands.tools import EXIT_CODES, Desk, show, work


@click.group("repository", epilog=EXIT_CODES)
def command() -> None:
    """Whole repositories."""


@command.command("list")
@click.option("--namespace", metavar="NAME", help="Only those of this namespace.")
@click.option("--after", default="", metavar="NAME", help="Begin behind this repository.")
@click.option("--most", type=click.IntRange(1, 1000), default=100, show_default=True, help="How many to list.")
@config_option
@output_option
def list_all(namespace: str | None, after: str, most: int, config: str | None, output: str) -> None:
    """List the repositories by name."""

    async def verb(desk: Desk) -> None:
        means = Means(desk.database, desk.settings, desk.hints.publish)
        document = await get_repositories(means, namespace, after, most)
        rows: Any = document["repositories"]
        show(document, output, ("repositories", rows))

    work(config, verb)


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

    work(config, verb, changes="repository delete", repository=name)
