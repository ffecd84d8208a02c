"""`antipode drill`: the loss of a location, rehearsed on a live registry."""

import json
import signal

import click
import trio
from attrs import asdict

from node.commands.options import config_option, output_option
from node.commands.tools import Desk, Refused, show, size, work
from node.config_values import Unfit, parse_duration
from node.drill import CanaryFailed, CannotDrill, DrillPlan, DrillReport, Tally, drill
from node.records.drills import Begun
from node.records.risk import tags_at_risk

_EXIT_CODES = """\b
Exit codes:
  0  no client saw an error, and the location has all that it missed
  1  refused, or the database is out of reach: nothing was begun
  2  the configuration or the command line is wrong; nothing was done
  3  clients saw errors, or what was owed was not paid in time, or the drill was ended early
"""


def _duration(_context: click.Context, _parameter: click.Parameter, value: str) -> float:
    try:
        return float(parse_duration(value))
    except Unfit as error:
        raise click.BadParameter(f"found {value!r}; {error}") from None


@click.command("drill", epilog=_EXIT_CODES)
@click.argument("location")
@click.option("--registry", metavar="URL", help="Where clients reach the registry. Default: as SERVER_HOSTNAME says.")
@click.option("--duration", default="5m", show_default=True, callback=_duration, help="How long the location is down.")
@click.option(
    "--settle", default="10m", show_default=True, callback=_duration, help="How long to wait for the copies it missed."
)
@click.option(
    "--balancer", is_flag=True, help="Let /health/endtoend be 503 where nodes prefer the location, as in earnest."
)
@click.option(
    "--anyway", is_flag=True, help="Begin although blobs have their only copy there; they are served all the same."
)
@config_option
@output_option
def command(
    location: str,
    registry: str | None,
    duration: float,
    settle: float,
    balancer: bool,
    anyway: bool,
    config: str | None,
    output: str,
) -> None:
    """Let all nodes treat LOCATION as down for a while, and see what clients see.

    The store is not touched: nodes only behave as if it were down. Pulls fail over, pushes go elsewhere, copies wait. A canary
    image in a repository of its own is pulled and pushed all the time and deleted at the end. Reports the errors that clients saw,
    the time to fail over, the time until the location has what it missed, and what would have been lost.

    Ctrl-C ends it at once. If this program dies, the drill ends by itself within 30 s.
    """

    async def verb(desk: Desk) -> int:
        settings = desk.settings
        url = registry or f"{settings.scheme}://{settings.server_hostname}"
        plan = DrillPlan(location, url, duration, balancer, anyway, settle)

        def say(text: str) -> None:
            click.echo(text, err=True)

        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            try:
                report = await drill(desk.database, desk.hints.publish, plan, signals, say)
            except CannotDrill as error:
                raise Refused(await _why(desk, location, error)) from None
            except CanaryFailed as error:
                raise Refused(f"the canary does not work, nothing was begun: {error}") from None
        _show(report, output)
        return 0 if report.clean else 3

    work(config, verb, changes="drill")


async def _why(desk: Desk, location: str, error: CannotDrill) -> str:
    text = f"{location}: {error}"
    if error.outcome is Begun.ONLY_COPIES:
        page = await tags_at_risk(desk.database, location, 20)
        tags = [f"  {tag.repository}:{tag.tag}" for tag in page.tags]
        lines = [f"{text}; --anyway begins all the same. Tags that need them:", *(tags or ["  none"])]
        text = "\n".join([*lines, "  and more"] if page.more else lines)
    return text


def _show(report: DrillReport, output: str) -> None:
    document = {**asdict(report), "clean": report.clean}
    if output == "json":
        click.echo(json.dumps(document, indent=2))
        return
    show(document, output, ("clients", [_row("pull", report.pulls), _row("push", report.pushes)]))
    for line in report.errors:
        click.echo(f"  {line}")
    before = ", ".join(report.before) or "nowhere"
    click.echo(f"before the drill the canary was served from {before}")
    click.echo(f"what would have been lost: {report.lost_blobs} blobs, {size(report.lost_bytes)}")
    converged = "not in time" if report.converged_after is None else f"after {report.converged_after:.1f} s"
    click.echo(f"owed to it: {report.debt_before} before, {report.debt_after} at the end; paid {converged}")
    if report.aborted is not None:
        click.echo(f"ended early after {report.seconds:.0f} s: {report.aborted}")


def _row(kind: str, seen: Tally) -> dict[str, object]:
    return {
        "kind": kind,
        "tried": seen.tried,
        "errors": seen.errors,
        "slowest_seconds": seen.slowest,
        "failed_over_after_seconds": seen.failed_over_after,
    }
