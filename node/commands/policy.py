"""`antipode policy`: where a namespace's blobs must be, and where never."""

import json
import sys
from pathlib import Path

import click
import yaml

from node.api.policies import Request, get_policies, get_policy, set_policy
from node.commands.options import ID, config_option, output_option
from node.commands.tools import EXIT_CODES, Desk, Refused, show, size, work
from node.records.locations import apply_defaults
from node.records.members import default_locations
from node.records.reconcile import ask_for_round
from replication.ports import Forget


@click.group("policy", epilog=EXIT_CODES)
def command() -> None:
    """Say where the blobs of a namespace must be, and where never.

    \b
    A policy is JSON or YAML; every key may be left out:
      required:   [us, eu]              instead of the default locations
      never:      [ap]                  binds uploads, fail-over, tees and copies
      tags:                             further locations for tags by pattern (*, ?, [...]),
        - pattern: "v*"                 with all that they refer to and what is attached to them
          locations: [br]
      durability: local|quorum:N|all    what a push waits for

    The nodes copy and trim what a change asks for at once. A blob that several namespaces share may be wherever one of
    them allows it: `antipode replication residency` names such blobs.
    """  # noqa: D301 - click needs the control character, which marks text that stays as it is


@command.command("list")
@config_option
@output_option
def list_all(config: str | None, output: str) -> None:
    """List the namespaces that have a policy."""

    async def verb(desk: Desk) -> None:
        document = await get_policies(desk.database)
        rows = document["policies"]
        assert isinstance(rows, list)
        table = [{**row, "policy": json.dumps(row["policy"])} for row in rows]
        show(document, output, ("policies", table))

    work(config, verb)


@command.command("show")
@click.argument("namespace")
@config_option
@output_option
def show_one(namespace: str, config: str | None, output: str) -> None:
    """Show the policy of NAMESPACE, as `set` takes it."""

    async def verb(desk: Desk) -> None:
        document = await get_policy(desk.database, namespace)
        if output == "json":
            show(document, output)
        elif document["policy"]:
            click.echo(yaml.safe_dump(document["policy"], sort_keys=False).rstrip())
        else:
            defaults = ", ".join(await default_locations(desk.database))
            click.echo(f"{namespace} has no policy: its blobs must be in the default locations, {defaults}")

    work(config, verb)


@command.command("set")
@click.argument("namespace")
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--required", metavar="LOCATION,...", help="Locations where its blobs must be.")
@click.option("--never", metavar="LOCATION,...", help="Locations where they must never be.")
@click.option(
    "--tag", "tags", metavar="PATTERN=LOCATION,...", multiple=True, help="Further locations for tags. Repeatable."
)
@click.option("--durability", metavar="WORD", help="local, quorum:N or all.")
@click.option("--expect-version", type=ID, help="Refuse if the policy has another version by now.")
@click.option("--dry-run", is_flag=True, help="Only show what would be copied and trimmed.")
@config_option
@output_option
def set_one(
    namespace: str,
    file: str | None,
    required: str | None,
    never: str | None,
    tags: tuple[str, ...],
    durability: str | None,
    expect_version: int | None,
    dry_run: bool,
    config: str | None,
    output: str,
) -> None:
    """Replace the policy of NAMESPACE by FILE (JSON or YAML, - is standard input), or by the options.

    Shows what is copied and trimmed because of it.
    """
    options = _document(required, never, tags, durability)
    if (file is None) == (not options):
        raise click.UsageError("give either FILE or options; `remove` takes a policy away")
    document = options if file is None else _read(file)

    async def verb(desk: Desk) -> None:
        await _change(desk, Request(namespace, document, dry_run, expect_version), output)

    work(config, verb, changes=None if dry_run else "policy set", namespace=namespace)


@command.command("remove")
@click.argument("namespace")
@click.option("--dry-run", is_flag=True, help="Only show what would be copied and trimmed.")
@config_option
@output_option
def remove(namespace: str, dry_run: bool, config: str | None, output: str) -> None:
    """Take the policy of NAMESPACE away: the default locations count again."""

    async def verb(desk: Desk) -> None:
        await _change(desk, Request(namespace, None, dry_run), output)

    work(config, verb, changes=None if dry_run else "policy remove", namespace=namespace)


@command.command("apply")
@click.argument("namespace", required=False)
@config_option
def apply(namespace: str | None, config: str | None) -> None:
    """Make this file's default locations the database's at once, and have every policy obeyed anew.

    Without this a new DISTRIBUTED_STORAGE_DEFAULT_LOCATIONS takes effect when all live nodes have it. What this makes the default
    counts until they all have changed to another list. NAMESPACE is only checked: the nodes go over all blobs.
    """

    async def verb(desk: Desk) -> None:
        defaults = desk.settings.default_locations
        if namespace is not None and not (await get_policy(desk.database, namespace))["version"]:
            raise Refused(f"{namespace} has no policy")
        changed = await apply_defaults(desk.database, defaults)
        await ask_for_round(desk.database)
        desk.hints.publish(Forget())
        counted = ", ".join(await default_locations(desk.database))
        click.echo(f"default locations: {counted}{' (changed)' if changed else ''}; the nodes reconcile now")

    work(config, verb, changes="policy apply")


async def _change(desk: Desk, request: Request, output: str) -> None:
    document = await set_policy(desk.database, desk.hints.publish, request, replicate=desk.settings.replicate)
    if output == "json":
        show(document, output)
        return
    word = "would be" if request.dry_run else "will be"
    click.echo(f"{request.namespace}: {json.dumps(document['policy'])}, version {document['version']}")
    for key, verb in (("copies", "copied to"), ("trims", "trimmed from")):
        amounts = document[key]
        assert isinstance(amounts, dict)
        for at, amount in amounts.items():
            click.echo(f"  {amount['blobs']} blobs, {size(amount['bytes'])}, {word} {verb} {at}")
        if not amounts:
            click.echo(f"  nothing {word} {verb} anywhere")


def _document(
    required: str | None, never: str | None, tags: tuple[str, ...], durability: str | None
) -> dict[str, object]:
    document: dict[str, object] = {}
    if required is not None:
        document["required"] = _names(required)
    if never is not None:
        document["never"] = _names(never)
    if durability is not None:
        document["durability"] = durability
    rules = []
    for tag in tags:
        pattern, equals, locations = tag.rpartition("=")
        if not equals:
            raise click.BadParameter(f"found {tag!r}; write PATTERN=LOCATION,...", param_hint="--tag")
        rules.append({"pattern": pattern, "locations": _names(locations)})
    return {**document, "tags": rules} if rules else document


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _read(file: str) -> object:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        document: object = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise click.BadParameter(f"{file}: {' '.join(str(error).split())}", param_hint="FILE") from None
    return document
