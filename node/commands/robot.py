"""`antipode robot`: accounts of programs."""

from typing import cast

import click

from node.api.federation import add_federation, get_federation, remove_federation
from node.api.tags import Means
from node.auth.model import Kind
from node.auth.secrets import ROBOT, hash_secret, new_secret
from node.commands.options import ID, config_option, output_option
from node.commands.people import YES, need, row_of, show_account, told
from node.commands.tools import EXIT_CODES, Desk, Refused, show, work
from node.names import is_account
from node.records.accounts import Deletion, create_robot, delete_account, find_account, list_accounts, set_secret

_MOST = 10_000


@click.group("robot", epilog=EXIT_CODES)
def command() -> None:
    """Make robots: accounts of programs, named OWNER+NAME, of a user or an organisation.

    A robot may do what it, or a team that it is in, was given on repositories, and nothing by its owner.
    """


def _parts(name: str) -> tuple[str, str]:
    owner, plus, own = name.partition("+")
    if not (plus and is_account(owner) and is_account(own)):
        raise click.BadParameter(f"found {name!r}; write owner+name", param_hint="NAME")
    return owner, own


@command.command()
@click.argument("name")
@click.option("--description", metavar="TEXT")
@config_option
@output_option
def create(name: str, description: str | None, config: str | None, output: str) -> None:
    """Make the robot NAME (OWNER+NAME) and show its token, once."""
    owner, own = _parts(name)

    async def verb(desk: Desk) -> None:
        token = new_secret(ROBOT)
        made = await create_robot(desk.database, owner, own, hash_secret(token), description=description)
        if made is None:
            raise Refused(f"{name} cannot be made: there is such a robot, or no user or organisation {owner}")
        show_account(made, name, output, token=token)

    work(config, verb, changes="robot create", namespace=name.partition("+")[0])


@command.command("list")
@click.argument("owner", required=False)
@config_option
@output_option
def list_all(owner: str | None, config: str | None, output: str) -> None:
    """List the robots, all or those of OWNER."""

    async def verb(desk: Desk) -> None:
        if owner is not None:
            await need(desk, owner, Kind.USER, Kind.ORGANIZATION)
        found = await list_accounts(desk.database, Kind.ROBOT, owner=owner, most=_MOST)
        rows = [row_of(account) for account in found]
        show({"robots": rows}, output, ("robots", rows))

    work(config, verb)


@command.command()
@click.argument("name")
@config_option
@output_option
def renew(name: str, config: str | None, output: str) -> None:
    """Give the robot NAME a new token and show it, once. The old one is void at once."""
    _parts(name)

    async def verb(desk: Desk) -> None:
        token = new_secret(ROBOT)
        if not await set_secret(desk.database, name, hash_secret(token)):
            raise Refused(f"there is no robot {name}")
        told(desk)
        show_account(await find_account(desk.database, name), name, output, token=token)

    work(config, verb, changes="robot renew", namespace=name.partition("+")[0])


@command.command()
@click.argument("name")
@config_option
@output_option
def federations(name: str, config: str | None, output: str) -> None:
    """List the rules by which tokens of identity providers count for the robot NAME, those of the configuration without an id."""
    _parts(name)

    async def verb(desk: Desk) -> None:
        document = await get_federation(_means(desk), name)
        show(document, output, ("rules", cast("list[dict[str, object]]", document["rules"])))

    work(config, verb)


@command.command("add-federation")
@click.argument("name")
@click.argument("issuer")
@click.argument("subject")
@click.option("--audience", metavar="TEXT", help="What must be in aud. Default: SERVER_HOSTNAME.")
@config_option
@output_option
def add_rule(name: str, issuer: str, subject: str, audience: str | None, config: str | None, output: str) -> None:
    """Let tokens of ISSUER about SUBJECT count for the robot NAME; a star in SUBJECT stands for any characters.

    The issuer must be one of ROBOT_FEDERATION_ISSUERS.
    """
    _parts(name)
    body = {"issuer": issuer, "subject": subject, **({} if audience is None else {"audience": audience})}

    async def verb(desk: Desk) -> None:
        document = await add_federation(_means(desk), name, body)
        show(document, output, ("rule", [document]))

    work(config, verb, changes="robot add-federation", namespace=name.partition("+")[0])


@command.command("remove-federation")
@click.argument("name")
@click.argument("rule", type=ID, metavar="ID")
@config_option
@output_option
def remove_rule(name: str, rule: int, config: str | None, output: str) -> None:
    """Take the rule ID of the robot NAME away; what was issued by it is void."""
    _parts(name)

    async def verb(desk: Desk) -> None:
        show(document := await remove_federation(_means(desk), name, str(rule)), output, ("deleted", [document]))

    work(config, verb, changes="robot remove-federation", namespace=name.partition("+")[0])


def _means(desk: Desk) -> Means:
    return Means(desk.database, desk.settings, desk.hints.publish)


@command.command()
@click.argument("name")
@YES
@config_option
def delete(name: str, yes: bool, config: str | None) -> None:
    """Delete the robot NAME; what it could do it cannot from then on."""
    _parts(name)
    if not yes:
        click.confirm(f"Delete the robot {name}?", abort=True, err=True)

    async def verb(desk: Desk) -> None:
        if await delete_account(desk.database, name) is not Deletion.DONE:
            raise Refused(f"there is no robot {name}")
        told(desk)
        click.echo(f"{name} is deleted")

    work(config, verb, changes="robot delete", namespace=name.partition("+")[0])
