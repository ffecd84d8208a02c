"""`antipode audit`: who did what."""

from typing import Any

import click

from node.api.auditlog import get_audit, read_time
from node.commands.options import ID, config_option, output_option
from node.commands.tools import EXIT_CODES, Desk, show, work
from node.config.values import Unfit
from node.records.auditlog import Filter


def _time(_context: click.Context, _parameter: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    try:
        return read_time(value)
    except Unfit as error:
        raise click.BadParameter(f"found {value!r}; {error}") from None


@click.command("audit", epilog=EXIT_CODES)
@click.option("--namespace", metavar="NAME", help="Only what was done in this namespace.")
@click.option("--repository", metavar="NAME", help="Only what was done to this repository.")
@click.option("--actor", metavar="ACCOUNT", help="Only what this account did.")
@click.option("--action", metavar="WORD", help="Only this: push, pull, deleteTag, ...")
@click.option("--since", metavar="TIME", callback=_time, help="Not before this, e.g. 2026-11-26T10:00:00Z.")
@click.option("--until", metavar="TIME", callback=_time, help="Before this.")
@click.option("--before", metavar="ID", type=ID, help="Go on behind this line.")
@click.option("--most", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many lines.")
@config_option
@output_option
def command(
    namespace: str | None,
    repository: str | None,
    actor: str | None,
    action: str | None,
    since: float | None,
    until: float | None,
    before: int | None,
    most: int,
    config: str | None,
    output: str,
) -> None:
    """List who did what to which repository, from where and through which node, the latest first."""
    wanted = Filter(namespace, repository, actor, action, since, until)

    async def verb(desk: Desk) -> None:
        document = await get_audit(desk.database, wanted, before, most)
        lines: Any = document["lines"]
        rows = [
            {**line, "detail": " ".join(f"{key}={value}" for key, value in line["detail"].items())} for line in lines
        ]
        show(document, output, ("audit", rows))

    work(config, verb)
