"""`antipode replication`: what is owed, what keeps failing, what would be lost; and a reconciliation at once."""

from collections.abc import Mapping
from typing import Any

import click

from node.api.debts import replication_risk, replication_status, residency, stalled_copies
from node.commands.options import config_option, output_option
from node.commands.tools import EXIT_CODES, Desk, progress_bar, show, size, work
from node.config.values import say_duration
from node.records.reconcile import PostgresRounds, count_blobs
from replication.reconciler import Findings, ReconcilerSettings, backfill


@click.group("replication", epilog=EXIT_CODES)
def command() -> None:
    """Look at debt and risk, and make the registry pay at once what it owes."""


@command.command()
@config_option
@output_option
def status(config: str | None, output: str) -> None:
    """Show what is owed to every location, the oldest of it, what runs and what is stalled, and for how long a store is down."""

    async def verb(desk: Desk) -> None:
        document = await replication_status(desk.database)
        rows = [{**row, "debt_bytes": size(row["debt_bytes"])} for row in _rows(document["locations"])]
        show(document, output, ("debt", rows))
        if output == "table":
            at = document["reconciliation"]
            assert isinstance(at, Mapping)
            click.echo(_say_round(at))

    work(config, verb)


def _say_round(at: Mapping[str, Any]) -> str:
    ended = at["completed_seconds_ago"]
    when = "none has ended yet" if ended is None else f"the last one ended {say_duration(round(ended))} ago"
    return f"reconciliation: round {at['round']}{', in a hurry' if at['hurry'] else ''}; {when}"


@command.command()
@click.option("--location", help="Only copies to this location.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 10_000))
@config_option
@output_option
def stalled(location: str | None, limit: int, config: str | None, output: str) -> None:
    """List copies that keep failing, with their last error and since when. They are retried for ever all the same."""

    async def verb(desk: Desk) -> None:
        document = await stalled_copies(desk.database, location, limit)
        show(document, output, ("stalled", _rows(document["stalled"])))

    work(config, verb)


@command.command()
@click.option("--location", help="Only this location.")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(0, 1000), help="Tags per location.")
@config_option
@output_option
def risk(location: str | None, limit: int, config: str | None, output: str) -> None:
    """Show what would be lost if a location died now: blobs, bytes, the oldest, and tags that could not be pulled any more.

    And if the database died now: the changes that no store's journal has yet.
    """

    async def verb(desk: Desk) -> None:
        document = await replication_risk(desk.database, location, limit)
        lines = _rows(document["risk"])
        totals = [
            {k: size(v) if k == "bytes" else v for k, v in line.items() if k not in ("tags", "more_tags")}
            for line in lines
        ]
        tags = [
            {"location": line["location"], "image": f"{tag['repository']}:{tag['tag']}", "digest": tag["digest"],
             "only there for seconds": tag["since"]}
            for line in lines
            for tag in line["tags"]
        ]  # fmt: skip
        lost = document["database"]
        assert isinstance(lost, dict)
        show(document, output, ("if it died now", totals), ("tags", tags), ("journals", lost["journals"]))
        for line in lines if output == "table" else ():
            if line["more_tags"]:
                click.echo(f"{line['location']}: and more tags")
        if output == "table" and lost["changes"] is not None:
            click.echo(f"if the database died now: {lost['changes']} changes that no journal has would be lost")

    work(config, verb)


@command.command("residency")
@click.argument("name", metavar="LOCATION|NAMESPACE")
@config_option
@output_option
def residency_of(name: str, config: str | None, output: str) -> None:
    """List blobs that are where a namespace that links them forbids it, because another one shares and allows them.

    Of a LOCATION: all such blobs there. Of a NAMESPACE: its own, wherever they are. Residency is about blobs; manifests and tags
    live in PostgreSQL.
    """

    async def verb(desk: Desk) -> None:
        document = await residency(desk.database, name)
        blobs = _rows(document["blobs"])
        while (after := document["next"]) is not None:
            assert isinstance(after, list)
            document = await residency(desk.database, name, (after[0], after[1]))
            blobs += _rows(document["blobs"])
        show({**document, "blobs": blobs}, output, ("shared blobs", blobs))
        if output == "table":
            click.echo(str(document["note"]))

    work(config, verb)


@command.command("backfill")
@config_option
@output_option
def backfill_now(config: str | None, output: str) -> None:
    """Recompute required minus present for every blob now, and report what was found.

    Lost tasks are scheduled, orphaned ones removed, copies that nothing requires counted: the nodes trim them, each after reading
    a copy that stays. Idempotent, and safe while pushes go on: the nodes do the same all the time at a gentle pace.
    """

    async def verb(desk: Desk) -> None:
        found = await run_backfill(desk)
        document = {
            "blobs": found.blobs,
            "scheduled": found.owed,
            "moving": found.moving,
            "tasks_removed": found.struck,
            "copies_to_trim": found.spare,
            "tag_rules_changed": found.tags,
            "busy": found.busy,
        }
        show(document, output, ("backfill", [document]))

    work(config, verb, changes="replication backfill")


async def run_backfill(desk: Desk) -> Findings:
    """Do a whole reconciliation behind a progress bar."""
    settings = desk.settings
    total = await count_blobs(desk.database)
    with progress_bar() as bar:
        task = bar.add_task("reconciling", total=total)

        def progress(found: Findings) -> None:
            bar.update(task, total=max(total, found.blobs), completed=found.blobs)

        return await backfill(
            PostgresRounds(desk.database),
            desk.hints.publish,
            ReconcilerSettings(keep=settings.keep_trimmed, replicate=settings.replicate),
            progress=progress,
        )


def _rows(value: object) -> list[dict[str, Any]]:
    assert isinstance(value, list)
    return list(value)
