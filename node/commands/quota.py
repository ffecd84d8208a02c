"""`antipode quota`: how much namespaces hold and may hold."""

import click

from node.api.frame import Json
from node.api.quotas import get_quota, get_quotas, set_quota
from node.commands.options import config_option, output_option
from node.commands.tools import EXIT_CODES, Desk, show, size, work


@click.group("quota", epilog=EXIT_CODES)
def command() -> None:
    """Show and set how many bytes of blobs a namespace may hold, each blob counted once."""


@command.command("list")
@click.option("--after", default="", metavar="NAME", help="Begin behind this namespace.")
@click.option("--most", type=click.IntRange(1, 1000), default=100, show_default=True, help="How many to list.")
@config_option
@output_option
def list_all(after: str, most: int, config: str | None, output: str) -> None:
    """List the namespaces with what they hold and may hold."""

    async def verb(desk: Desk) -> None:
        document = await get_quotas(desk.database, desk.settings.default_quota, after, most)
        lines = document["quotas"]
        assert isinstance(lines, list)
        show(document, output, ("quotas", [_row(line) for line in lines]))

    work(config, verb)


@command.command("show")
@click.argument("namespace")
@config_option
@output_option
def show_one(namespace: str, config: str | None, output: str) -> None:
    """Show what NAMESPACE holds and may hold."""

    async def verb(desk: Desk) -> None:
        document = await get_quota(desk.database, namespace, desk.settings.default_quota)
        show(document, output, ("", [_row(document)]))

    work(config, verb)


@command.command("set")
@click.argument("namespace")
@click.option("--reject", metavar="SIZE", help="Refuse pushes beyond this, e.g. 100GiB. Not given: the default.")
@click.option("--warn", metavar="SIZE", help="Warn who pushes beyond this. Not given: no warning.")
@config_option
@output_option
def set_one(namespace: str, reject: str | None, warn: str | None, config: str | None, output: str) -> None:
    """Replace the quota of NAMESPACE, which need not exist yet. Without options it has none of its own any more."""

    async def verb(desk: Desk) -> None:
        body = {"reject": reject, "warn": warn}
        document = await set_quota(desk.database, namespace, body, desk.settings.default_quota)
        show(document, output, ("", [_row(document)]))

    work(config, verb, changes="quota set", namespace=namespace)


def _row(line: Json) -> Json:
    def say(value: object) -> str | None:
        return size(value) if isinstance(value, int) else None

    return {
        "namespace": line["namespace"],
        "blobs": line["blobs"],
        "used": say(line["used_bytes"]),
        "reject": say(line["reject_bytes"]),
        "warn": say(line["warn_bytes"]),
        "own": line["own"],
    }
