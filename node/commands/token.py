"""`antipode token`: application tokens, and the keys that sign what nodes issue."""

from uuid import UUID

import click

from node.api.accounts import MOST_TITLE, parse_token_lifetime
from node.api.frame import timestamp
from node.auth.changes import KEYS_CHANGED
from node.auth.keyring import Keyring
from node.auth.model import Kind
from node.auth.sealing import Sealer
from node.auth.secrets import APPLICATION, hash_secret, new_secret
from node.commands.options import config_option, output_option
from node.commands.people import need, told
from node.commands.tools import EXIT_CODES, Desk, Refused, show, work
from node.config.values import Unfit
from node.records.application_tokens import ApplicationToken, create_token, delete_token, list_tokens


@click.group("token", epilog=EXIT_CODES)
def command() -> None:
    """Make and end application tokens: passwords of an account for one purpose each."""


def _row(token: ApplicationToken) -> dict[str, object]:
    return {
        "id": str(token.id),
        "account": token.account,
        "title": token.title,
        "created": timestamp(token.created_at),
        "ends": timestamp(token.expires_at),
    }


@command.command()
@click.argument("account")
@click.argument("title")
@click.option("--lifetime", metavar="DURATION", help='Such as "90d"; without it the token has no end.')
@config_option
@output_option
def create(account: str, title: str, lifetime: str | None, config: str | None, output: str) -> None:
    """Make a token of ACCOUNT, called TITLE, and show it, once. Log in with it in place of the password."""
    try:
        seconds = None if lifetime is None else parse_token_lifetime(lifetime)
    except Unfit as error:
        raise click.BadParameter(f"found {lifetime!r}; {error}", param_hint="--lifetime") from None
    if not 1 <= len(title) <= MOST_TITLE:
        raise click.BadParameter(f"write 1 to {MOST_TITLE} characters", param_hint="TITLE")

    async def verb(desk: Desk) -> None:
        secret = new_secret(APPLICATION)
        made = await create_token(desk.database, account, title, hash_secret(secret), seconds)
        if made is None:
            raise Refused(f"there is no user or robot {account}")
        row = {**_row(made), "token": secret}
        show(row, output, ("token", [row]))

    work(config, verb, changes="token create", namespace=account)


@command.command("list")
@click.argument("account")
@config_option
@output_option
def list_all(account: str, config: str | None, output: str) -> None:
    """List the tokens of ACCOUNT that have not ended."""

    async def verb(desk: Desk) -> None:
        await need(desk, account, Kind.USER, Kind.ROBOT)
        rows = [_row(token) for token in await list_tokens(desk.database, account)]
        show({"tokens": rows}, output, ("tokens", rows))

    work(config, verb)


@command.command()
@click.argument("account")
@click.argument("token", type=click.UUID, metavar="ID")
@config_option
def revoke(account: str, token: UUID, config: str | None) -> None:
    """End the token ID of ACCOUNT, and what was issued with it, at once."""

    async def verb(desk: Desk) -> None:
        if not await delete_token(desk.database, account, token):
            raise Refused(f"{account} has no token {token}")
        told(desk)
        click.echo("revoked")

    work(config, verb, changes="token revoke", namespace=account)


@command.command("rotate-keys")
@click.option("--revoke", is_flag=True, help="Make all that was ever issued void: everybody logs in again.")
@config_option
def rotate_keys(revoke: bool, config: str | None) -> None:
    """Let the nodes sign with a new key. They do so by themselves every 30 days; this is for a key that leaked.

    The new one signs in two minutes, when every node knows it, and the old ones still count. With --revoke it signs at once.
    """

    async def verb(desk: Desk) -> None:
        if desk.settings.secret_key is None:
            raise Refused("DATABASE_SECRET_KEY: the registry is open and signs nothing")
        longest = max(desk.settings.token_lifetime, desk.settings.refresh_token_lifetime)
        made = await Keyring(desk.database, Sealer(desk.settings.secret_key), longest).rotate(revoke=revoke)
        desk.hints.publish(KEYS_CHANGED)
        click.echo(f"new signing key: {made}")

    work(config, verb, changes="token rotate-keys")
