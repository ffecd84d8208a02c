"""`antipode user`: who may log in."""

from time import time
from typing import cast

import click

from node.api.login import drop_link, get_links, link_to
from node.api.tags import Means
from node.auth.directory import DirectoryUnavailable
from node.auth.model import Kind
from node.auth.provider import provider_of
from node.commands.options import config_option, output_option
from node.commands.people import ACCOUNT, PASSWORD, YES, ask_password, need, row_of, show_account, told
from node.commands.tools import EXIT_CODES, Desk, Refused, show, work
from node.records.accounts import (
    Deletion,
    create_user,
    delete_account,
    find_account,
    list_accounts,
    set_secret,
    update_account,
)

_MOST = 10_000


@click.group("user", epilog=EXIT_CODES)
def command() -> None:
    """Make and change users. The first one is made with `antipode user create NAME --superuser`."""


@command.command()
@click.argument("name", type=ACCOUNT)
@click.option("--superuser", is_flag=True, help="May administer the registry: accounts, locations, policies.")
@click.option("--email", metavar="ADDRESS")
@PASSWORD
@config_option
@output_option
def create(
    name: str, superuser: bool, email: str | None, password_stdin: bool, config: str | None, output: str
) -> None:
    """Make the user NAME, whose namespace of the same name is theirs from then on. Asks for a password."""
    secret = ask_password(password_stdin)

    async def verb(desk: Desk) -> None:
        made = await create_user(desk.database, name, secret, email=email, superuser=superuser, adopt=True)
        if made is None:
            raise Refused(f"the name {name} is taken")
        show_account(made, name, output)

    work(config, verb, changes="user create")


@command.command("list")
@config_option
@output_option
def list_all(config: str | None, output: str) -> None:
    """List the users."""

    async def verb(desk: Desk) -> None:
        rows = [row_of(account) for account in await list_accounts(desk.database, Kind.USER, most=_MOST)]
        show({"users": rows}, output, ("users", rows))

    work(config, verb)


@command.command("show")
@click.argument("name")
@config_option
@output_option
def show_one(name: str, config: str | None, output: str) -> None:
    """Show the account NAME: a user, an organisation or a robot."""

    async def verb(desk: Desk) -> None:
        show_account(await find_account(desk.database, name), name, output)

    work(config, verb)


@command.command()
@click.argument("name")
@PASSWORD
@config_option
def password(name: str, password_stdin: bool, config: str | None) -> None:
    """Set the password of the user NAME. Tokens that were issued before are void."""
    secret = ask_password(password_stdin)

    async def verb(desk: Desk) -> None:
        account = await find_account(desk.database, name)
        if account is None or account.kind is not Kind.USER or not await set_secret(desk.database, name, secret):
            raise Refused(f"there is no user {name}")
        told(desk)
        click.echo(f"{name} has a new password")

    work(config, verb, changes="user password")


@command.command()
@click.argument("name")
@click.option("--superuser/--no-superuser", default=None, help="May administer the registry, or not.")
@click.option("--enabled/--disabled", default=None, help="May log in, or not.")
@click.option("--email", metavar="ADDRESS", help='"" for none.')
@config_option
@output_option
def change(
    name: str, superuser: bool | None, enabled: bool | None, email: str | None, config: str | None, output: str
) -> None:
    """Change the user NAME; what is taken away is gone at once."""
    if superuser is None and enabled is None and email is None:
        raise click.UsageError("give what is to be changed: --superuser, --enabled, --email or their opposites")

    async def verb(desk: Desk) -> None:
        if superuser:
            await need(desk, name, Kind.USER)
        changed = await update_account(desk.database, name, email=email, enabled=enabled, superuser=superuser)
        told(desk)
        show_account(changed, name, output)

    work(config, verb, changes="user change")


@command.command("link")
@click.argument("name")
@click.argument("subject")
@config_option
@output_option
def link(name: str, subject: str, config: str | None, output: str) -> None:
    """Let whom the identity provider knows as SUBJECT (sub) have the account NAME; a failed login says the subject."""

    async def verb(desk: Desk) -> None:
        document = await link_to(_means(desk), name, await _issuer(desk), subject)
        show(document, output, ("link", [document]))

    work(config, verb, changes="user link")


@command.command("links")
@click.argument("name")
@config_option
@output_option
def links(name: str, config: str | None, output: str) -> None:
    """List whom of identity providers the account NAME belongs to."""

    async def verb(desk: Desk) -> None:
        document = await get_links(_means(desk), name)
        show(document, output, ("links", cast("list[dict[str, object]]", document["links"])))

    work(config, verb)


@command.command("unlink")
@click.argument("name")
@click.argument("subject")
@click.option("--issuer", metavar="URL", help="Default: the provider of the configuration.")
@config_option
@output_option
def unlink(name: str, subject: str, issuer: str | None, config: str | None, output: str) -> None:
    """Take the account NAME from whom the identity provider knows as SUBJECT. Their tokens go on, unless revoked."""

    async def verb(desk: Desk) -> None:
        document = await drop_link(_means(desk), name, issuer or await _issuer(desk), subject)
        show(document, output, ("unlinked", [document]))

    work(config, verb, changes="user unlink")


async def _issuer(desk: Desk) -> str:
    """Return what the provider of the configuration calls itself. Raises Refused."""
    provider = provider_of(desk.settings, time)
    if provider is None:
        raise Refused("AUTHENTICATION_TYPE: it is not OIDC, so there is no identity provider to link with")
    try:
        return await provider.issuer()
    except DirectoryUnavailable as error:
        raise Refused(f"the identity provider cannot be asked: {error}") from None


def _means(desk: Desk) -> Means:
    return Means(desk.database, desk.settings, desk.hints.publish)


@command.command()
@click.argument("name")
@YES
@config_option
def delete(name: str, yes: bool, config: str | None) -> None:
    """Delete the account NAME with its robots and tokens. Its namespace must have no repositories any more."""
    if not yes:
        click.confirm(f"Delete the account {name}?", abort=True, err=True)

    async def verb(desk: Desk) -> None:
        done = await delete_account(desk.database, name)
        if done is not Deletion.DONE:
            in_use = done is Deletion.IN_USE
            raise Refused(f"the namespace {name} has repositories" if in_use else f"there is no account {name}")
        told(desk)
        click.echo(f"{name} is deleted")

    work(config, verb, changes="user delete")
