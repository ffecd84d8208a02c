"""`antipode webhook`: who is told what happens, and what they have not been told."""

import sys
from pathlib import Path
from typing import Any

import click

from node.api.tags import Means
from node.api.webhooks import (
    deliver_again,
    get_deliveries,
    get_webhooks,
    remove_webhook,
    set_webhook,
)
from node.commands.options import ID, config_option, output_option
from node.commands.tools import EXIT_CODES, Desk, show, work
from node.hooks.message import KINDS

_namespace = click.option("--namespace", metavar="NAME", help="A namespace's; without it the whole registry's.")


@click.group("webhook", epilog=EXIT_CODES)
def command() -> None:
    """Have events sent to a URL: signed, and again until they are taken.

    What a webhook does not take for about three days is dead: `deliveries --state dead` lists it, `redeliver` sends it again.
    """


@command.command("list")
@_namespace
@config_option
@output_option
def list_all(namespace: str | None, config: str | None, output: str) -> None:
    """List the webhooks with what waits for them."""

    async def verb(desk: Desk) -> None:
        document = await get_webhooks(_means(desk), namespace)
        show(document, output, ("webhooks", _rows(document["webhooks"])))

    work(config, verb)


@command.command("set")
@click.argument("name")
@click.option("--url", required=True, help="Where events are sent to.")
@click.option("--event", "events", multiple=True, required=True, type=click.Choice(KINDS), help="Repeatable.")
@click.option(
    "--secret-file",
    "signing",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    help="The secret (whsec_...) that signs; - is standard input. Without it a new webhook gets one, which is shown once.",
)
@click.option("--active/--paused", default=True, help="A paused one is told nothing of what happens meanwhile.")
@_namespace
@config_option
@output_option
def set_one(
    name: str,
    url: str,
    events: tuple[str, ...],
    signing: str | None,
    active: bool,
    namespace: str | None,
    config: str | None,
    output: str,
) -> None:
    """Make or replace the webhook NAME."""
    body: dict[str, object] = {"url": url, "events": list(events), "active": active}
    if signing is not None:
        text = sys.stdin.read() if signing == "-" else Path(signing).read_text(encoding="utf-8")
        body["secret"] = text.strip()

    async def verb(desk: Desk) -> None:
        document = await set_webhook(_means(desk), namespace, name, body)
        show(document, output, ("", _rows([document])))
        if output == "table" and "secret" in document:
            click.echo(f"its secret, which nothing shows later: {document['secret']}")

    work(config, verb, changes="webhook set", namespace=namespace)


@command.command()
@click.argument("name")
@_namespace
@config_option
@output_option
def delete(name: str, namespace: str | None, config: str | None, output: str) -> None:
    """Delete the webhook NAME with what it has not been told."""

    async def verb(desk: Desk) -> None:
        show(document := await remove_webhook(_means(desk), namespace, name), output, ("deleted", [document]))

    work(config, verb, changes="webhook delete", namespace=namespace)


@command.command()
@click.argument("name")
@click.option("--state", type=click.Choice(["pending", "dead"]), help="Only these.")
@click.option("--after", type=ID, default=0, metavar="ID", help="Begin behind this one.")
@click.option("--most", type=click.IntRange(1, 1000), default=100, show_default=True, help="How many to list.")
@_namespace
@config_option
@output_option
def deliveries(
    name: str, state: str | None, after: int, most: int, namespace: str | None, config: str | None, output: str
) -> None:
    """List what the webhook NAME has not been told, oldest first."""

    async def verb(desk: Desk) -> None:
        document = await get_deliveries(_means(desk), namespace, name, state=state, after=after, most=most)
        rows = _rows(document["deliveries"])
        show(
            document,
            output,
            ("deliveries", [{key: row[key] for key in row if key not in ("data", "event")} for row in rows]),
        )

    work(config, verb)


@command.command()
@click.argument("name")
@click.argument("delivery", required=False, type=ID)
@_namespace
@config_option
@output_option
def redeliver(name: str, delivery: int | None, namespace: str | None, config: str | None, output: str) -> None:
    """Send DELIVERY to the webhook NAME at once, or without it everything that is dead."""

    async def verb(desk: Desk) -> None:
        document = await deliver_again(_means(desk), namespace, name, delivery)
        show(document, output, ("due", [document]))

    work(config, verb, changes="webhook redeliver", namespace=namespace)


def _means(desk: Desk) -> Means:
    return Means(desk.database, desk.settings, desk.hints.publish)


def _rows(lines: Any) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "secret"} for line in lines]
