"""`antipode tag`: listed, deleted, what a tag pointed to, and back to it."""

from collections.abc import Mapping
from typing import cast

import click

from node.api.repositories import get_tags, remove_tag
from node.api.tags import Means, history_of, restore_tag
from node.commands.options import config_option, output_option
from node.commands.tools import EXIT_CODES, Desk, show, work


@click.group("tag", epilog=EXIT_CODES)
def command() -> None:
    """Look at tags and at what they pointed to before, and restore them within their window (DEFAULT_TAG_EXPIRATION)."""


@command.command("list")
@click.argument("repository")
@click.option("--after", default="", metavar="TAG", help="Begin behind this tag.")
@click.option("--most", type=click.IntRange(1, 1000), default=100, show_default=True, help="How many to list.")
@config_option
@output_option
def list_all(repository: str, after: str, most: int, config: str | None, output: str) -> None:
    """List the tags of REPOSITORY by name."""

    async def verb(desk: Desk) -> None:
        document = await get_tags(Means(desk.database, desk.settings, desk.hints.publish), repository, after, most)
        show(document, output, (repository, cast("list[Mapping[str, object]]", document["tags"])))

    work(config, verb)


@command.command()
@click.argument("repository")
@click.argument("tag")
@config_option
@output_option
def delete(repository: str, tag: str, config: str | None, output: str) -> None:
    """Delete TAG of REPOSITORY; it can be restored within its window."""

    async def verb(desk: Desk) -> None:
        document = await remove_tag(Means(desk.database, desk.settings, desk.hints.publish), repository, tag)
        show(document, output, ("deleted", [document]))

    work(config, verb, changes="tag delete", repository=repository)


@command.command()
@click.argument("repository")
@click.argument("tag")
@click.option("--most", type=click.IntRange(1, 500), default=50, show_default=True, help="How many states to list.")
@config_option
@output_option
def history(repository: str, tag: str, most: int, config: str | None, output: str) -> None:
    """List what TAG of REPOSITORY points to and pointed to, latest first."""

    async def verb(desk: Desk) -> None:
        means = Means(desk.database, desk.settings, desk.hints.publish)
        document = await history_of(means, repository, tag, {"n": (str(most),)})
        show(document, output, (f"{repository}:{tag}", cast("list[Mapping[str, object]]", document["history"])))

    work(config, verb)


@command.command()
@click.argument("repository")
@click.argument("tag")
@click.argument("digest")
@config_option
@output_option
def restore(repository: str, tag: str, digest: str, config: str | None, output: str) -> None:
    """Point TAG of REPOSITORY to DIGEST again, which `antipode tag history` lists."""

    async def verb(desk: Desk) -> None:
        means = Means(desk.database, desk.settings, desk.hints.publish)
        document = await restore_tag(means, repository, tag, {"digest": digest})
        show(document, output, ("restored", [document]))

    work(config, verb, changes="tag restore", repository=repository)
