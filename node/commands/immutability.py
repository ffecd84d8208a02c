"""`antipode immutability`: tags that never move."""

import click

from node.api.immutability import get_immutability, set_immutability
from node.api.tags import Means
from node.commands.options import config_option, output_option
from node.commands.tools import EXIT_CODES, Desk, show, work


@click.group("immutability", epilog=EXIT_CODES)
def command() -> None:
    """Say which tags can be neither moved nor deleted, by patterns: v* for example.

    NAME is a namespace, whose patterns hold in all its repositories, or with a slash a repository.
    """


@command.command("show")
@click.argument("name")
@config_option
@output_option
def show_one(name: str, config: str | None, output: str) -> None:
    """Show the patterns of NAME."""

    async def verb(desk: Desk) -> None:
        document = await get_immutability(_means(desk), namespace=name, repository=name if "/" in name else None)
        show(document, output, ("", [document]))

    work(config, verb)


@command.command("set")
@click.argument("name")
@click.argument("patterns", nargs=-1)
@config_option
@output_option
def set_one(name: str, patterns: tuple[str, ...], config: str | None, output: str) -> None:
    """Replace the patterns of NAME by PATTERNS; without any, all its tags can move again."""

    async def verb(desk: Desk) -> None:
        body = {"patterns": list(patterns)}
        document = await set_immutability(_means(desk), body, namespace=name, repository=name if "/" in name else None)
        show(document, output, ("", [document]))

    work(
        config,
        verb,
        changes="immutability set",
        namespace=None if "/" in name else name,
        repository=name if "/" in name else None,
    )


def _means(desk: Desk) -> Means:
    return Means(desk.database, desk.settings, desk.hints.publish)
