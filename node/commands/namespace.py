"""`antipode namespace`: how long its tags can be restored; and its end."""

import click

from node.api.tags import Means, expiration_of, remove_namespace, set_expiration
from node.commands.options import config_option, output_option
from node.commands.tools import EXIT_CODES, Desk, show, work


@click.group("namespace", epilog=EXIT_CODES)
def command() -> None:
    """Whole namespaces: how long their tags can be restored, and their end."""


@command.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@config_option
@output_option
def delete(name: str, yes: bool, config: str | None, output: str) -> None:
    """Delete the namespace NAME with its policy and all its repositories.

    Their tags cannot be restored. What they held is collected when GARBAGE_GRACE is over, unless others hold it too.
    """
    if not yes:
        click.confirm(f"Delete the namespace {name} with all its repositories?", abort=True, err=True)

    async def verb(desk: Desk) -> None:
        document = await remove_namespace(Means(desk.database, desk.settings, desk.hints.publish), name)
        show(document, output, ("deleted", [document]))

    work(config, verb, changes="namespace delete", namespace=name)


@command.command("tag-expiration")
@click.argument("name")
@click.argument("window", required=False)
@config_option
@output_option
def tag_expiration(name: str, window: str | None, config: str | None, output: str) -> None:
    """Show how long deleted and moved tags of the namespace NAME can be restored, or set it to WINDOW.

    WINDOW is one of TAG_EXPIRATION_OPTIONS, or `default`.
    """

    async def verb(desk: Desk) -> None:
        means = Means(desk.database, desk.settings, desk.hints.publish)
        if window is None:
            document = await expiration_of(means, name)
        else:
            document = await set_expiration(means, name, {"tag_expiration": None if window == "default" else window})
        show(document, output, ("tag expiration", [document]))

    work(config, verb, changes=None if window is None else "namespace tag-expiration", namespace=name)
