"""`antipode permission`: who may do what to a repository."""

import click

from node.auth.model import Role
from node.commands.options import config_option, output_option
from node.commands.people import told
from node.commands.tools import EXIT_CODES, Desk, Refused, show, work
from node.records.permissions import (
    Grantee,
    Granting,
    is_public,
    list_permissions,
    remove_permission,
    set_permission,
    set_visibility,
)

ROLE = click.Choice(["read", "write", "admin"])


@click.group("permission", epilog=EXIT_CODES)
def command() -> None:
    """Say who may do what to a repository.

    \b
    read     pull
    write    pull, push, and delete tags and manifests
    admin    besides, change permissions and visibility, and delete the repository
    """  # noqa: D301 - click needs the control character, which marks text that stays as it is


def grantee_of(text: str) -> Grantee:
    """Return whom `account` or `team:NAME` means."""
    return Grantee(team=text.removeprefix("team:")) if text.startswith("team:") else Grantee(account=text)


def row_of_grant(grantee: Grantee, role: Role) -> dict[str, object]:
    """Return a permission as it is shown."""
    return {"grantee": grantee.account or f"team:{grantee.team}", "role": role.name.lower()}


@command.command("list")
@click.argument("repository")
@config_option
@output_option
def list_all(repository: str, config: str | None, output: str) -> None:
    """List the permissions on a REPOSITORY, and whether it is public."""

    async def verb(desk: Desk) -> None:
        found, public = await list_permissions(desk.database, repository), await is_public(desk.database, repository)
        if found is None or public is None:
            raise Refused(f"there is no repository {repository}")
        rows = [row_of_grant(line.grantee, line.role) for line in found]
        title = f"permissions on {repository} ({'public' if public else 'private'})"
        show({"repository": repository, "public": public, "permissions": rows}, output, (title, rows))

    work(config, verb)


@command.command("set")
@click.argument("repository")
@click.argument("grantee")
@click.argument("role", type=ROLE)
@config_option
def set_one(repository: str, grantee: str, role: str, config: str | None) -> None:
    """Give GRANTEE (a user, a robot, or team:NAME of the repository's organisation) the ROLE on a REPOSITORY."""

    async def verb(desk: Desk) -> None:
        _done(
            await set_permission(desk.database, repository, grantee_of(grantee), Role[role.upper()]),
            repository,
            f"there is no {grantee} that can be given {repository}: write a user, a robot, or team:NAME of its organisation",
        )
        told(desk)
        click.echo(f"{grantee} has {role} on {repository}")

    work(config, verb, changes="permission set", repository=repository)


@command.command()
@click.argument("repository")
@click.argument("grantee")
@config_option
def remove(repository: str, grantee: str, config: str | None) -> None:
    """Take the permission of GRANTEE on a REPOSITORY away; it is gone at once."""

    async def verb(desk: Desk) -> None:
        _done(
            await remove_permission(desk.database, repository, grantee_of(grantee)),
            repository,
            f"{grantee} has no permission of its own on {repository}",
        )
        told(desk)
        click.echo(f"{grantee} has no permission of its own on {repository}")

    work(config, verb, changes="permission remove", repository=repository)


@command.command()
@click.argument("repository")
@click.argument("visibility", type=click.Choice(["public", "private"]))
@config_option
def visibility(repository: str, visibility: str, config: str | None) -> None:
    """Let anybody pull from a REPOSITORY, or only those who have a permission."""

    async def verb(desk: Desk) -> None:
        if not await set_visibility(desk.database, repository, public=visibility == "public"):
            raise Refused(f"there is no repository {repository}")
        told(desk)
        click.echo(f"{repository} is {visibility}")

    work(config, verb, changes="permission visibility", repository=repository)


def _done(outcome: Granting, repository: str, nobody: str) -> None:
    if outcome is Granting.NO_REPOSITORY:
        raise Refused(f"there is no repository {repository}")
    if outcome is Granting.NO_GRANTEE:
        raise Refused(nobody)
