"""`antipode org`: organisations, which own a namespace together."""

import click

from node.auth.model import Kind, Role
from node.commands.options import ID, config_option, output_option
from node.commands.people import ACCOUNT, need, row_of, show_account
from node.commands.permission import ROLE, grantee_of, row_of_grant
from node.commands.tools import EXIT_CODES, Desk, Refused, show, work
from node.records.accounts import create_organization, list_accounts
from node.records.default_permissions import add_default, list_defaults, remove_default

_MOST = 10_000


@click.group("org", epilog=EXIT_CODES)
def command() -> None:
    """Make organisations, and say what their new repositories begin with. `antipode user delete` deletes one."""


@command.command()
@click.argument("name", type=ACCOUNT)
@click.option("--admin", metavar="USER", help="A user who administers it.")
@click.option("--email", metavar="ADDRESS")
@config_option
@output_option
def create(name: str, admin: str | None, email: str | None, config: str | None, output: str) -> None:
    """Make the organisation NAME with a team of admins, `owners`. The namespace of the same name is its own from then on."""

    async def verb(desk: Desk) -> None:
        if admin is not None:
            await need(desk, admin, Kind.USER)
        made = await create_organization(desk.database, name, admin, email=email, adopt=True)
        if made is None:
            raise Refused(f"the name {name} is taken")
        show_account(made, name, output)

    work(config, verb, changes="org create", namespace=name)


@command.command("list")
@config_option
@output_option
def list_all(config: str | None, output: str) -> None:
    """List the organisations."""

    async def verb(desk: Desk) -> None:
        rows = [row_of(account) for account in await list_accounts(desk.database, Kind.ORGANIZATION, most=_MOST)]
        show({"organizations": rows}, output, ("organizations", rows))

    work(config, verb)


@command.command("defaults")
@click.argument("name")
@config_option
@output_option
def defaults(name: str, config: str | None, output: str) -> None:
    """List the permissions that new repositories of the organisation NAME begin with."""

    async def verb(desk: Desk) -> None:
        await need(desk, name, Kind.ORGANIZATION)
        rows = [
            {"id": line.id, **row_of_grant(line.grantee, line.role), "when_made_by": line.creator}
            for line in await list_defaults(desk.database, name)
        ]
        show({"defaults": rows}, output, ("default permissions", rows))

    work(config, verb)


@command.command("add-default")
@click.argument("name")
@click.argument("grantee")
@click.argument("role", type=ROLE)
@click.option("--when-made-by", metavar="ACCOUNT", help="Only for repositories that this account makes.")
@config_option
@output_option
def add(name: str, grantee: str, role: str, when_made_by: str | None, config: str | None, output: str) -> None:
    """Give GRANTEE (an account, or team:NAME) the ROLE on repositories that will be made in the organisation NAME."""

    async def verb(desk: Desk) -> None:
        line = await add_default(desk.database, name, grantee_of(grantee), Role[role.upper()], when_made_by)
        if line is None:
            raise Refused(f"there is no organisation {name}, or no {grantee}")
        row = {"id": line.id, **row_of_grant(line.grantee, line.role), "when_made_by": line.creator}
        show(row, output, ("default permission", [row]))

    work(config, verb, changes="org add-default", namespace=name)


@command.command("remove-default")
@click.argument("name")
@click.argument("default", type=ID, metavar="ID")
@config_option
def remove(name: str, default: int, config: str | None) -> None:
    """Take the default permission ID of the organisation NAME away. Repositories that are there keep theirs."""

    async def verb(desk: Desk) -> None:
        if not await remove_default(desk.database, name, default):
            raise Refused(f"{name} has no default permission {default}")
        click.echo("removed")

    work(config, verb, changes="org remove-default", namespace=name)
