"""`antipode verify`: reads and hashes the copies in a location again."""

from uuid import uuid4

import click
from attrs import asdict

from engines.contract import EngineError
from node.audit import AuditReport, AuditSettings, verify_location
from node.commands.options import config_option, output_option
from node.commands.tools import Desk, Refused, no_such_location, progress_bar, show, size, work
from node.markers import NotOurs, check_marker
from node.records.audit import count_copies
from node.records.ledger import PostgresLedger
from node.records.members import Membership
from node.records.repair import read_markers
from replication.ports import Placed, Wake

EXIT_BAD = 1
EXIT_UNREADABLE = 3


def _fraction(_context: click.Context, _parameter: click.Parameter, value: str | None) -> float:
    if value is None:
        return 1.0
    try:
        share = float(value.removesuffix("%")) / (100 if value.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise click.BadParameter(f"found {value!r}; write a share such as 1% or 0.01")
    return share


@click.command("verify")
@click.option("--location", required=True, help="The location whose copies are read.")
@click.option("--sample", "fraction", metavar="SHARE", callback=_fraction, help="Read only a random share, such as 1%.")
@click.option("--streams", default=4, show_default=True, type=click.IntRange(1, 64), help="Copies read at a time.")
@config_option
@output_option
def command(location: str, fraction: float, streams: int, config: str | None, output: str) -> None:
    """Read every copy in a location again and compare its digest; what is missing or wrong is marked suspect and healed.

    Copies that were suspect and are good are trusted again. The report says whether it was a sample, and how large.

    \b
    Exit codes:
      0  all that was read is good
      1  copies are missing or wrong, or the database is out of reach
      2  the configuration or the command line is wrong; nothing was done
      3  copies could not be read, which says nothing about them
    """  # noqa: D301 - click needs the control character, which marks text that stays as it is

    async def verb(desk: Desk) -> int:
        settings = desk.settings
        if location not in settings.locations:
            raise no_such_location(location, settings)
        copies, total = await count_copies(desk.database, location)
        member = Membership(uuid4(), settings.preference, settings.default_locations, "verify")
        ledger = PostgresLedger(database=desk.database, member=member)

        async with settings.locations[location].engine.open() as engine:
            try:
                if (marker := (await read_markers(desk.database)).get(location)) is not None:
                    await check_marker(engine, marker)
            except NotOurs as error:
                raise Refused(f"nothing is concluded from it: {error}") from None
            except EngineError as error:
                # It may be anybody's: nothing is concluded from what it says a moment later.
                _show(
                    AuditReport(location, stopped=f"{type(error).__name__}: {error}"), output, fraction, copies, total
                )
                return EXIT_UNREADABLE
            with progress_bar() as bar:
                task = bar.add_task(f"verifying {location}", total=round(copies * fraction))

                def progress(report: AuditReport) -> None:
                    bar.update(task, total=max(report.copies, round(copies * fraction)), completed=report.copies)

                report = await verify_location(
                    desk.database,
                    engine,
                    location,
                    AuditSettings(fraction, streams, settings.source_stall),
                    ledger.mark_suspect,
                    progress,
                )
        bad = [finding for finding in report.findings if finding.bad]
        desk.hints.publish(
            *(Placed(finding.digest, location) for finding in bad), *([Wake((location,))] if bad else [])
        )
        _show(report, output, fraction, copies, total)
        return EXIT_BAD if bad else EXIT_UNREADABLE if report.findings or report.stopped else 0

    work(config, verb, changes="verify")


def _show(report: AuditReport, output: str, fraction: float, copies: int, total: int) -> None:
    unreadable = len(report.findings) - report.bad
    lost = sum(finding.bad and not finding.other_copies for finding in report.findings)
    document = {
        "location": report.location,
        "sample": fraction < 1,
        "share_asked": fraction,
        "copies_read": report.copies,
        "bytes_read": report.size,
        "copies_there": copies,
        "bytes_there": total,
        "bad": report.bad,
        "bad_without_another_copy": lost,
        "unreadable": unreadable,
        "trusted_again": report.healed,
        "stopped": report.stopped or None,
        "findings": [asdict(finding) for finding in report.findings],
    }
    if output == "json":
        show(document, output)
        return
    what = f"a SAMPLE of {fraction:.3%}" if fraction < 1 else "all copies"
    click.echo(
        f"{report.location}: read {what}: {report.copies} of {copies} copies, {size(report.size)} of {size(total)}; "
        f"{report.bad} bad, {unreadable} unreadable, {report.healed} trusted again"
    )
    if report.stopped:
        click.echo(f"the store does not answer: {report.stopped}")
    if report.findings:
        rows = [
            {
                "digest": finding.digest,
                "what": "bad" if finding.bad else "unreadable",
                "reason": finding.reason,
                "other good copies": finding.other_copies,
            }
            for finding in report.findings
        ]
        show(None, output, ("findings", rows))
    if report.bad:
        click.echo(f"{report.bad - lost} are healed from another copy; {lost} have no other good copy: push them again")
