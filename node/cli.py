"""The command line: `antipode serve`, `antipode config check`. Its help is the manual; errors are lines, not tracebacks."""

import errno
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click
import structlog
import trio

from node import logs
from node.commands.options import EXIT_FAILED, config_option, load
from node.config.load import load_settings
from node.config.report import report
from node.config.values import Unfit, parse_bind
from node.services import NodeFailure

EXIT_CLEAN = 0

_OUTPUT_LOST = frozenset({errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})

_MANUAL = """A geo-replicated container registry.

Every region runs a node, and all nodes together are one registry: what is pushed in one region can be pulled in every
other at once. A node keeps bytes in object stores, one or more per region, and everything else in one PostgreSQL database
that all nodes share. Redis, if there is one, carries hints between the nodes and may be lost at any time. One
configuration file, with Quay's key names, serves all regions; what differs is the order in which a node prefers the
stores.

\b
  antipode config check config.yaml
      say what a node would do with this file, or everything that is wrong with it
  QUAY_DISTRIBUTED_STORAGE_PREFERENCE="eu us" antipode serve --config config.yaml --bind 0.0.0.0:8080
      run the node of the region whose own store is eu

\b
Environment:
  ANTIPODE_CONFIG                      the configuration file, instead of --config
  ANTIPODE_BIND                        host:port to listen on, instead of --bind
  QUAY_DISTRIBUTED_STORAGE_PREFERENCE  this region's order of stores, e.g. "eu us";
                                       replaces DISTRIBUTED_STORAGE_PREFERENCE of the file
  QUAY_OVERRIDE_CONFIG                 a JSON object whose keys replace the file's

\b
Exit codes:
  0  stopped in order (SIGTERM, SIGINT), or nothing is wrong
  1  the node could not start, or failed
  2  the configuration or the command line is wrong; nothing was started
"""


def _bind_option(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[str, int]:
    try:
        return parse_bind(value)
    except Unfit as error:
        raise click.BadParameter(f"found {value!r}; {error}") from None


def _show_version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        try:
            said = version("antipode")
        except PackageNotFoundError:
            said = "(not installed)"
        click.echo(f"antipode {said}")
        context.exit()


class _Lazy(click.Group):
    """Loads a topic's verbs only when they are asked for: most of the time of a short verb would go into imports."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted([*super().list_commands(ctx), *_TOPICS])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command by its name."""
        if cmd_name not in _TOPICS:
            return super().get_command(ctx, cmd_name)
        command: click.Command = import_module(f"node.commands.{_TOPICS[cmd_name]}").command
        return command

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Read the command line, and show help or the version where it asks for them."""
        with _ended_from_outside():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        with _ended_from_outside():
            return super().invoke(ctx)


@contextmanager
def _ended_from_outside() -> Iterator[None]:
    """Tell click what ends a command from outside and is no bug: Ctrl-C, a reader that has left, a full disk below its output.

    These come up in a nursery, so that click sees a group of them and not what it knows.
    """
    try:
        yield
    except (OSError, BaseExceptionGroup) as error:
        leaves = list(_leaves(error))
        lost = [leaf for leaf in leaves if isinstance(leaf, OSError) and leaf.errno in _OUTPUT_LOST]
        interrupted = [leaf for leaf in leaves if isinstance(leaf, KeyboardInterrupt)]
        if len(lost) + len(interrupted) < len(leaves):
            raise
        if interrupted:
            raise KeyboardInterrupt from error
        if lost[0].errno == errno.EPIPE:
            # click ends without a word.
            raise lost[0] from None
        raise click.ClickException(f"the output cannot be written: {lost[0].strerror}") from error


_TOPICS = {
    "audit": "audit",
    "collect": "collect",
    "drill": "drill",
    "immutability": "immutability",
    "location": "location",
    "login": "signing_in",
    "logout": "signing_out",
    "namespace": "namespace",
    "org": "org",
    "orphans": "orphans",
    "permission": "permission",
    "policy": "policy",
    "quota": "quota",
    "repair": "repair",
    "replication": "replication",
    "repository": "repository",
    "rescue": "rescue",
    "robot": "robot",
    "tag": "tag",
    "team": "team",
    "token": "token",
    "user": "user",
    "verify": "verify",
    "wait": "wait",
    "webhook": "webhook",
}
"""Command -> room in node/commands that has it as `command`."""


@click.group(
    cls=_Lazy, help=_MANUAL, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
def main() -> None:
    """Run the program."""


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from _leaves(member)
    else:
        yield error


def run(node: Callable[[], Awaitable[None]]) -> int:
    """Run a node under Trio and return the exit code.

    An expected failure (`NodeFailure`) is one line of the log, a bug is logged with its traceback. Ctrl-C before the node
    has its own handler is a clean stop.
    """
    log = structlog.get_logger("antipode")
    try:
        trio.run(node, strict_exception_groups=True)
    except (Exception, BaseExceptionGroup, KeyboardInterrupt) as error:
        leaves = list(_leaves(error))
        failures = [leaf for leaf in leaves if isinstance(leaf, NodeFailure)]
        bugs = [leaf for leaf in leaves if not isinstance(leaf, NodeFailure | KeyboardInterrupt)]
        for failure in failures:
            log.error("the node failed", reason=str(failure))  # noqa: TRY400 - one line for the operator
        if bugs:
            log.critical("the node failed by a bug", exc_info=error)
        return EXIT_FAILED if failures or bugs else EXIT_CLEAN
    return EXIT_CLEAN


@main.command()
@config_option
@click.option(
    "--bind",
    metavar="HOST:PORT",
    envvar="ANTIPODE_BIND",
    default="127.0.0.1:8080",
    show_default=True,
    callback=_bind_option,
    help="Where to listen; :8080 is every address of this machine. Default: $ANTIPODE_BIND, else the loopback interface.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="How much to log. Lines for people on a terminal, JSON otherwise.",
)
def serve(config: str | None, bind: tuple[str, int], log_level: str) -> None:
    """Run a node in the foreground until SIGTERM or SIGINT.

    Brings the database's schema up to date first; several nodes may start at once. On SIGTERM it tells the load balancer to
    go elsewhere, ends the requests in flight, and stops. On SIGHUP it reads the configuration again and takes over the modes
    (REGISTRY_STATE, DISABLE_PUSHES), the default quota, what the audit log keeps (AUDIT_PULLS, ACTION_LOG_ROTATION_THRESHOLD),
    WEBHOOK_ALLOWED_NETWORKS, the limits of copies and fail-over (REPLICATION_*, FAILOVER_BYTES_PER_SECOND), and a new certificate;
    its log says what changed and what needs a restart.
    """
    settings = load(config)
    logs.set_up(log_level)
    # Here, so that the other commands answer without loading the whole node.
    from node.supervisor import run_node

    sys.exit(run(lambda: run_node(settings, bind, lambda: load_settings(config or "", os.environ))))


@main.group("config")
def config_group() -> None:
    """Look at a configuration without starting anything."""


@config_group.command()
@click.argument("file", required=False, metavar="[FILE]")
@config_option
def check(file: str | None, config: str | None) -> None:
    """Say what a node would do with FILE (default: --config), or everything that is wrong with it.

    Reads the environment as `serve` would, and connects to nothing. Exit code 2 if there are errors.
    """
    chosen = file if file is not None else config
    settings = load(chosen)
    click.echo(f"{Path(chosen or '')}: good\n\n{report(settings)}")
