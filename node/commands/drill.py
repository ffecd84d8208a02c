"""`antipode drill`: the loss of a location, rehearsed on a live registry."""

import json
import signal

import click
import trio
from attrs import asdict

from node.auth.own_token import OwnToken
from node.canary import CanaryFailed, Tally
from node.commands.options import config_option, output_option
from node.commands.tools import Desk, Refused, show, size, work
from node.config.values import Unfit, parse_duration, parse_host, say_duration
from node.drill import CannotDrill, DrillPlan, DrillReport, drill
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


def _url(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    scheme, _, rest = value.partition("://")
    try:
        host = rest.rstrip("/") if scheme in ("http", "https") else ""
        parse_host(host)
    except Unfit:
        raise click.BadParameter(f"found {value!r}; write http:// or https:// and a host, with its port") from None
    return f"{scheme}://{host}"


@click.command("drill", epilog=_EXIT_CODES)
@click.argument("location")
@click.option(
    "--registry",
    metavar="URL",
    callback=_url,
    help="Where clients reach the registry. Default: as SERVER_HOSTNAME says.",
)
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
    image in a repository of its own is pulled and pushed all the time and deleted at the end; where the registry has accounts,
    with a token that this command signs itself. Reports the errors that clients saw, the time to fail over, the time until the
    location has what it missed, and what would have been lost.

    Ctrl-C ends it at once. If this program dies, the drill ends by itself within 30 s.
    """

    async def verb(desk: Desk) -> int:
        settings = desk.settings
        url = registry or f"{settings.scheme}://{settings.server_hostname}"
        plan = DrillPlan(location, url, duration, balancer, anyway, settle)

        def login(repository: str) -> OwnToken:
            return OwnToken(desk.database, settings, repository)

        def say(text: str) -> None:
            click.echo(text, err=True)

        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            try:
                report = await drill(
                    desk.database, desk.hints.publish, plan, signals, say, None if settings.open_registry else login
                )
            except CannotDrill as error:
                raise Refused(await _why(desk, location, error)) from None
            except CanaryFailed as error:
                raise Refused(f"the canary does not work, nothing was begun: {error}") from None
        show_report(report, output)
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


def show_report(report: DrillReport, output: str) -> None:
    """Print what a drill showed: JSON for programs; a table, figures and a verdict for people."""
    document = {**asdict(report), "clean": report.clean}
    if output == "json":
        click.echo(json.dumps(document, indent=2))
        return
    location, errors = report.location, report.pulls.errors + report.pushes.errors
    click.echo(f"{location} was treated as down for {say_duration(round(report.seconds))}\n")
    show(document, output, ("", [_row("pulls", report.pulls, location), _row("pushes", report.pushes, location)]))
    if report.errors:
        click.echo("\nerrors that clients saw" + ("" if errors <= len(report.errors) else f", the first of {errors}"))
        for line in report.errors:
            click.echo(f"  {line}")
    click.echo()
    click.echo(f"served before    {', '.join(report.before) or 'nobody knows from where'}")
    lost = f"{_counted(report.lost_blobs, 'blob')}, {size(report.lost_bytes)}"
    click.echo(f"would be lost    {lost}, if {location} were gone for good")
    click.echo(f"copies owed      {report.debt_before} before, {_known(report.debt_after)} at the end, {_paid(report)}")
    click.echo(f"\n{_verdict(report, errors)}")


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _known(number: int | None) -> str:
    return "nobody knows how many" if number is None else str(number)


def _paid(report: DrillReport) -> str:
    after = report.converged_after
    return "not paid in time" if after is None else f"paid {after:.1f} s later"


def _verdict(report: DrillReport, errors: int) -> str:
    if report.clean:
        return "clean: no client saw an error, and the location has all that it missed"
    reasons = [
        None if report.aborted is None else f"ended early: {report.aborted}",
        f"clients saw {_counted(errors, 'error')}" if errors else None,
        "what was owed was not paid in time" if report.converged_after is None else None,
    ]
    return "not clean: " + "; ".join(reason for reason in reasons if reason)


def _row(kind: str, seen: Tally, location: str) -> dict[str, object]:
    return {
        "clients": kind,
        "tried": seen.tried,
        "errors": seen.errors,
        "slowest": f"{seen.slowest:.2f} s",
        f"last by {location}": _after(seen.failed_over_after),
    }


def _after(seconds: float | None) -> str | None:
    return f"{seconds:.1f} s after the beginning" if seconds else None if seconds is None else "none"
