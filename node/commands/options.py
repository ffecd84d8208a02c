"""What every verb of the command line may need before anything else is loaded: the configuration and its option."""

import os
from typing import IO, Any

import click

from node.config.load import ConfigurationErrors, load_settings
from node.config.settings import Settings

EXIT_FAILED = 1
EXIT_CONFIGURATION = 2
_DIGITS = 18


class WrongConfiguration(click.ClickException):
    """A configuration that cannot be used: its lines go to standard error as they are."""

    exit_code = EXIT_CONFIGURATION

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message."""
        click.echo(self.format_message(), file=file, err=file is None)


def load(path: str | None) -> Settings:
    """Return the settings of a configuration file. Raises WrongConfiguration with everything that is wrong with it."""
    if path is None:
        raise WrongConfiguration("no configuration: give --config FILE, or set ANTIPODE_CONFIG")
    try:
        return load_settings(path, os.environ)
    except ConfigurationErrors as errors:
        count = len(errors.problems)
        lines = [f"{path}: {count} error{'s' if count > 1 else ''}"]
        lines += [f"  - {problem}" for problem in errors.problems]
        if errors.warnings:
            lines += ["warnings:", *(f"  - {line}" for line in errors.warnings)]
        raise WrongConfiguration("\n".join(lines)) from None


config_option = click.option(
    "--config",
    "config",
    metavar="FILE",
    envvar="ANTIPODE_CONFIG",
    help="The configuration, the same file in every region. Default: $ANTIPODE_CONFIG.",
)


class _Id(click.ParamType[int]):
    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number. The database has none of more than 18 digits."""
        text = str(value)
        if text.isascii() and text.isdigit() and len(text) <= _DIGITS:
            return int(text)
        raise click.BadParameter(f"found {text!r}; write a number of at most {_DIGITS} digits", ctx, param)


ID = _Id()
"""A number by which the database knows something, as lists show it."""

output_option = click.option(
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="For people, or for programs.",
)
