"""`antipode collect`: take away now what nothing references, or say what would go."""

import click
from attrs import asdict

from node.collector import Collector, collect_rules
from node.commands.options import config_option, output_option
from node.commands.tools import EXIT_CODES, Desk, Refused, show, size, work
from node.config.values import say_duration
from node.records.collect import KINDS, read_pause, resume, survey


@click.command("collect", epilog=EXIT_CODES)
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option(
    "--resume", "go_on", is_flag=True, help="Let collection go on after a restore or a fail-over, and collect."
)
@config_option
@output_option
def command(dry_run: bool, go_on: bool, config: str | None, output: str) -> None:
    """Collect garbage now: what nothing has referenced for GARBAGE_GRACE. Nodes do the same all the time, at a gentle pace.

    Collection pauses by itself when the database was restored or another server has taken over: run `antipode repair
    --after-restore` then, or give --resume if you know that nothing was lost.
    """
    if dry_run and go_on:
        raise click.UsageError("--dry-run changes nothing, so it does not go together with --resume")

    async def verb(desk: Desk) -> None:
        rules = collect_rules(desk.settings)
        if dry_run:
            await _survey(desk, output)
            return
        if go_on:
            await resume(desk.database)
        reason = await read_pause(desk.database)
        if reason is not None:
            raise Refused(
                f"collection is paused: {reason}. Run `antipode repair --after-restore`, or give --resume if nothing was lost"
            )
        found = await Collector(desk.database, desk.hints.publish, rules).collect(gentle=False)
        rows = [{"kind": kind, "removed": count} for kind, count in found.removed]
        document = {**asdict(found), "removed": {**dict.fromkeys(KINDS, 0), **dict(found.removed)}}
        show(document, output, ("removed", rows))
        if output == "table":
            retention = say_duration(rules.retention)
            click.echo(
                f"{found.kept} candidates are used and stay; {found.busy} were in use at that moment; "
                f"{found.history} former states of tags forgotten"
            )
            click.echo(f"{size(found.bytes)} of blobs leave their stores in {retention}")

    work(config, verb, changes=None if dry_run else "collect")


async def _survey(desk: Desk, output: str) -> None:
    rules, reason = collect_rules(desk.settings), await read_pause(desk.database)
    found = await survey(desk.database, rules)
    document = {"paused": reason, "grace": rules.grace, "kinds": [asdict(line) for line in found]}
    rows = [
        {
            "kind": line.kind,
            "waits for its grace": line.waiting,
            "due": line.due,
            "would go": line.unused,
            "size": size(line.bytes),
        }
        for line in found
    ]
    show(document, output, ("candidates", rows))
    if output == "table":
        click.echo("What only these use comes up when they are gone.")
        if reason is not None:
            click.echo(f"Collection is paused: {reason}")
