"""`antipode team`: the teams of an organisation."""

import click

from node.api.frame import timestamp
from node.api.tags import Means
from node.api.team_sync import end_sync, set_sync
from node.auth.model import Kind, TeamRole
from node.commands.options import config_option, output_option
from node.commands.people import ACCOUNT, YES, need, told
from node.commands.tools import EXIT_CODES, Desk, Refused, show, work
from node.records.teams import (
    Team,
    TeamDeletion,
    TeamSynced,
    add_member,
    delete_team,
    find_team,
    list_members,
    list_teams,
    put_team,
    remove_member,
)

_MOST = 10_000
_ROLE = click.Choice(["member", "creator", "admin"])


@click.group("team", epilog=EXIT_CODES)
def command() -> None:
    """Make teams and say who is in them.

    \b
    What the members of a team may do in their organisation:
      member    what the team was given on repositories (`antipode permission`)
      creator   besides, make repositories by pushing to them
      admin     everything
    """  # noqa: D301 - click needs the control character, which marks text that stays as it is


def _row(team: Team) -> dict[str, object]:
    return {
        "organization": team.organization,
        "name": team.name,
        "role": team.role.name.lower(),
        "members": team.members,
        "description": team.description,
        "service": None if team.sync is None else team.sync.service,
        "group": None if team.sync is None else team.sync.group,
        "synced": None if team.sync is None else timestamp(team.sync.synced_at),
    }


@command.command("set")
@click.argument("organization")
@click.argument("team", type=ACCOUNT)
@click.option("--role", type=_ROLE, help="What its members may do; member, where the team is new.")
@click.option("--description", metavar="TEXT")
@config_option
@output_option
def set_one(
    organization: str, team: str, role: str | None, description: str | None, config: str | None, output: str
) -> None:
    """Make the TEAM of an ORGANIZATION, or change it."""

    async def verb(desk: Desk) -> None:
        given = None if role is None else TeamRole[role.upper()]
        found = await put_team(desk.database, organization, team, given, description)
        if found is None:
            raise Refused(f"there is no organisation {organization}")
        told(desk)
        show(_row(found), output, ("team", [_row(found)]))

    work(config, verb, changes="team set", namespace=organization)


@command.command("list")
@click.argument("organization")
@config_option
@output_option
def list_all(organization: str, config: str | None, output: str) -> None:
    """List the teams of an ORGANIZATION."""

    async def verb(desk: Desk) -> None:
        await need(desk, organization, Kind.ORGANIZATION)
        rows = [_row(team) for team in await list_teams(desk.database, organization, most=_MOST)]
        show({"teams": rows}, output, ("teams", rows))

    work(config, verb)


@command.command()
@click.argument("organization")
@click.argument("team")
@config_option
@output_option
def members(organization: str, team: str, config: str | None, output: str) -> None:
    """List who is in a TEAM of an ORGANIZATION."""

    async def verb(desk: Desk) -> None:
        if await find_team(desk.database, organization, team) is None:
            raise Refused(f"there is no team {team} of {organization}")
        found = await list_members(desk.database, organization, team, most=_MOST)
        rows = [{"name": member.name, "kind": member.kind.value} for member in found]
        show({"members": rows}, output, ("members", rows))

    work(config, verb)


@command.command()
@click.argument("organization")
@click.argument("team")
@click.argument("account")
@config_option
def add(organization: str, team: str, account: str, config: str | None) -> None:
    """Put ACCOUNT, a user or a robot of the organisation, into a TEAM."""

    async def verb(desk: Desk) -> None:
        try:
            added = await add_member(desk.database, organization, team, account)
        except TeamSynced:
            raise _decided(organization, team) from None
        if not added:
            raise Refused(f"there is no team {team} of {organization}, or no {account} that it can have")
        click.echo(f"{account} is in {team}")

    work(config, verb, changes="team add", namespace=organization)


@command.command()
@click.argument("organization")
@click.argument("team")
@click.argument("account")
@config_option
def remove(organization: str, team: str, account: str, config: str | None) -> None:
    """Take ACCOUNT out of a TEAM; what it had by it is gone at once."""

    async def verb(desk: Desk) -> None:
        try:
            outcome = await remove_member(desk.database, organization, team, account)
        except TeamSynced:
            raise _decided(organization, team) from None
        _done(outcome, f"no {account} in {team}", organization)
        told(desk)
        click.echo(f"{account} is no more in {team}")

    work(config, verb, changes="team remove", namespace=organization)


@command.command()
@click.argument("organization")
@click.argument("team")
@YES
@config_option
def delete(organization: str, team: str, yes: bool, config: str | None) -> None:
    """Delete a TEAM with all that it was given."""
    if not yes:
        click.confirm(f"Delete the team {team} of {organization}?", abort=True, err=True)

    async def verb(desk: Desk) -> None:
        _done(await delete_team(desk.database, organization, team), f"no team {team}", organization)
        told(desk)
        click.echo(f"{team} is deleted")

    work(config, verb, changes="team delete", namespace=organization)


@command.command()
@click.argument("organization")
@click.argument("team")
@click.option("--group", required=True, metavar="NAME", help="Of a directory relative to LDAP_BASE_DN.")
@config_option
@output_option
def sync(organization: str, team: str, group: str, config: str | None, output: str) -> None:
    """Let a group decide which users are in a TEAM, such as cn=devs,ou=groups.

    With a directory the team follows the group soon, and again and again. With an identity provider the users that are in the team
    leave it now, and whoever is in the group joins it when they log in. Robots stay, and come and go as before.

    The same group again lets those leave the team who have all left the group at once, and for whom it waits otherwise.
    """

    async def verb(desk: Desk) -> None:
        await set_sync(Means(desk.database, desk.settings, desk.hints.publish), organization, team, group)
        found = await find_team(desk.database, organization, team)
        assert found is not None
        show(_row(found), output, ("team", [_row(found)]))

    work(config, verb, changes="team sync", namespace=organization)


@command.command()
@click.argument("organization")
@click.argument("team")
@config_option
def unsync(organization: str, team: str, config: str | None) -> None:
    """Let no group decide any more which users are in a TEAM; whoever is in it stays."""

    async def verb(desk: Desk) -> None:
        await end_sync(Means(desk.database, desk.settings, desk.hints.publish), organization, team)
        click.echo(f"{team} follows no group any more")

    work(config, verb, changes="team unsync", namespace=organization)


def _decided(organization: str, team: str) -> Refused:
    return Refused(f"a group decides which users are in {team}: antipode team unsync {organization} {team} ends that")


def _done(outcome: TeamDeletion, missing: str, organization: str) -> None:
    if outcome is TeamDeletion.UNKNOWN:
        raise Refused(f"there is {missing} of {organization}")
    if outcome is TeamDeletion.LAST_ADMIN:
        raise Refused(f"nobody would administer {organization} any more")
