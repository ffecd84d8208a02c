"""What the verbs about accounts share: names that fit, passwords that nobody sees, and how accounts are shown."""

import sys
from collections.abc import Mapping

import click

from node.auth.changes import ACCESS_CHANGED
from node.auth.model import Kind
from node.auth.passwords import check_password, hash_now
from node.commands.tools import Desk, Refused, show
from node.config.values import Unfit
from node.names import NAME_MOST, is_account
from node.records.accounts import Account, find_account


class AccountName(click.ParamType[str]):
    """A name that a user, an organisation or a team may have."""

    name = "name"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name."""
        if not is_account(value):
            self.fail(
                f"found {value!r}; write lower-case letters and digits, joined by '.', '_', '__' or '-', at most {NAME_MOST}",
                param,
                ctx,
            )
        return value


ACCOUNT = AccountName()
_WORDS = {Kind.USER: "user", Kind.ORGANIZATION: "organisation", Kind.ROBOT: "robot"}
YES = click.option("--yes", is_flag=True, help="Do not ask.")
PASSWORD = click.option(
    "--password-stdin", is_flag=True, help="Read the password from standard input, one line, instead of asking for it."
)


def ask_password(stdin: bool) -> str:
    """Return the hash of a password that is read or asked for twice. A password is never an argument: others could see it."""
    if stdin:
        password = sys.stdin.readline().rstrip("\r\n")
    elif sys.stdin.isatty():
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    else:
        raise click.UsageError("this is no terminal: give --password-stdin")
    try:
        return hash_now(check_password(password))
    except Unfit as error:
        raise click.BadParameter(f"it cannot be used; {error}", param_hint="the password") from None


def row_of(account: Account) -> Mapping[str, object]:
    """Return an account as it is shown; never its secret."""
    return {
        "name": account.name,
        "kind": account.kind.value,
        "email": account.email,
        "description": account.description,
        "superuser": account.superuser,
        "enabled": account.enabled,
    }


def show_account(account: Account | None, name: str, output: str, **more: object) -> None:
    """Show one account. Raises Refused where there is none."""
    if account is None:
        raise Refused(f"there is no account {name}")
    show({**row_of(account), **more}, output, ("account", [{**row_of(account), **more}]))


async def need(desk: Desk, name: str, *kinds: Kind) -> None:
    """Refuse a name that no account of these kinds has: an empty list would look as if it had nothing."""
    found = await find_account(desk.database, name)
    if found is None or found.kind not in kinds:
        raise Refused(f"there is no {' or '.join(_WORDS[kind] for kind in kinds)} {name}")


def told(desk: Desk) -> None:
    """Tell the nodes that rights were taken away; they look at once."""
    desk.hints.publish(ACCESS_CHANGED)
