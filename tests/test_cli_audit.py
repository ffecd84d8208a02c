"""What is done with the command line is in the audit log: every command that changes something writes a line, and no other."""

import getpass
import json
import shlex
import socket
from collections.abc import Awaitable, Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import pytest
import trio
import yaml
from click.testing import CliRunner

from engines.contract import EngineError
from engines.crossing import open_bridge
from node.api.frame import Problem
from node.cli import main
from node.commands.options import EXIT_CONFIGURATION, EXIT_FAILED
from node.commands.tools import Desk, Refused, work
from node.records.accounts import create_organization, create_user
from node.records.auditlog import Filter, Line, read_lines
from node.records.migrate import migrate
from node.records.permissions import create_repository
from node.records.postgres import Database, open_database
from tests.cluster import configuration
from tests.services import Store

PASSWORD = "correct horse battery"

CHANGES = (
    "collect",
    "drill us",
    "immutability set team",
    "immutability set team/app",
    "location activate us",
    "location add us",
    "location drain us",
    "location pause us",
    "location remove us",
    "location resume us",
    "namespace delete team",
    "namespace tag-expiration team 1w",
    "org add-default team alice read",
    "org create team --admin alice",
    "org remove-default team 1",
    "orphans --location us --delete",
    "permission remove team/app alice",
    "permission set team/app alice read",
    "permission visibility team/app public",
    "policy apply",
    "policy remove team",
    "policy set team --required us",
    "quota set team --reject 1GiB",
    "repair --after-restore",
    "replication backfill",
    "repository delete team/app",
    "rescue",
    "robot add-federation team+ci https://id.example.com repo:*",
    "robot create team+ci",
    "robot delete team+ci",
    "robot remove-federation team+ci 1",
    "robot renew team+ci",
    "tag delete team/app v1",
    f"tag restore team/app v1 sha256:{'0' * 64}",
    "team add team devs alice",
    "team delete team devs",
    "team remove team devs alice",
    "team set team devs",
    "team sync team devs --group devs",
    "team unsync team devs",
    "token create alice laptop",
    "token revoke alice 00000000-0000-0000-0000-000000000000",
    "token rotate-keys",
    "user change alice --disabled",
    "user create alice --password-stdin",
    "user delete alice",
    "user link alice 123",
    "user password alice --password-stdin",
    "user unlink alice 123",
    "verify --location us",
    "webhook delete hook",
    "webhook delete hook --namespace team",
    "webhook redeliver hook",
    "webhook set hook --url https://hooks.example.com --event pushed",
)
READS = (
    "audit",
    "collect --dry-run",
    "immutability show team",
    "location list",
    "namespace tag-expiration team",
    "org defaults team",
    "org list",
    "orphans --location us",
    "permission list team/app",
    "policy list",
    "policy remove team --dry-run",
    "policy set team --required us --dry-run",
    "policy show team",
    "quota list",
    "quota show team",
    "replication residency us",
    "replication risk",
    "replication stalled",
    "replication status",
    "repository list",
    "robot federations team+ci",
    "robot list",
    "tag history team/app v1",
    "tag list team/app",
    "team list team",
    "team members team devs",
    "token list alice",
    "user links alice",
    "user list",
    "user show alice",
    "webhook deliveries hook",
    "webhook list",
)
ELSEWHERE = {"config check", "login", "logout", "serve", "wait"}
"""These ask no database but at most a node, or are the node itself."""


def leaves(command: click.Command, *above: str) -> Iterator[str]:
    """Yield the name of every command that does something."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from leaves(found, *above, name)
    else:
        yield " ".join(above)


def name_of(line: str) -> str:
    """Return which command a line gives."""
    return max((name for name in leaves(main) if f"{line} ".startswith(f"{name} ")), key=len)


def invoke(monkeypatch: pytest.MonkeyPatch, words: list[str], code: int = 0, given: str = "") -> str:
    """Run a command in this process; return what it printed."""
    monkeypatch.setattr("sys.argv", ["antipode", *words])
    result = CliRunner().invoke(main, words, input=given, prog_name="antipode")
    assert result.exit_code == code, (words, result.output, result.exception)
    return str(result.stdout)


def about(line: str) -> tuple[str | None, str | None]:
    """Return the namespace or the repository that a line is about, as it is called in all of these."""
    name = name_of(line)
    if "team/app" in line:
        return None, "team/app"
    if name in ("token create", "token revoke"):
        return "alice", None
    of_namespaces = name.split()[0] in ("immutability", "namespace", "org", "policy", "quota", "robot", "team")
    return "team" if (of_namespaces and name != "policy apply") or "--namespace team" in line else None, None


def test_every_command_is_known() -> None:
    """A new command must say here whether it changes something."""
    assert {name_of(line) for line in (*CHANGES, *READS)} | ELSEWHERE == set(leaves(main))


@pytest.mark.parametrize("line", [*CHANGES, *READS])
def test_what_has_a_line(monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    """A command that changes something is written down with its name and what it is about; what only looks, or would, is not."""
    name, said = name_of(line), []

    def work(
        *_: Any, changes: str | None = None, namespace: str | None = None, repository: str | None = None, **__: Any
    ) -> None:
        said.append((changes, namespace, repository) if changes else None)

    monkeypatch.setattr(import_module(f"node.commands.{name.split()[0]}"), "work", work)
    invoke(monkeypatch, shlex.split(line), given=f"{PASSWORD}\n" if "--password-stdin" in line else "y\n")
    assert said == [(name, *about(line)) if line in CHANGES else None]


async def ask(uri: str, question: Callable[[Database], Awaitable[Any]]) -> Any:
    async with open_bridge(), open_database(uri, most=1) as database:
        return await question(database)


@pytest.mark.usefixtures("logs_as_before")
def test_accounts_and_rights(
    monkeypatch: pytest.MonkeyPatch,
    database_uri: str,
    s3_stores: dict[str, Store],
    storage_path: str,
    tmp_path: Path,
) -> None:
    """Each change of accounts, rights and tokens has one line with who and what, in their order, and no line has a secret."""
    config = tmp_path / "config.yaml"
    document = configuration(
        database_uri,
        None,
        s3_stores,
        storage_path,
        FEATURE_OPEN_REGISTRY=None,
        DATABASE_SECRET_KEY="a secret key for tests",
        AUTHENTICATION_TYPE="OIDC",
        FEATURE_TEAM_SYNCING=True,
        TEST_LOGIN_CONFIG={
            "OIDC_SERVER": "https://login.example.com",
            "CLIENT_ID": "registry",
            "PREFERRED_GROUP_CLAIM_NAME": "groups",
        },
    )
    config.write_text(yaml.safe_dump(document))
    done: list[str] = []
    secrets = [PASSWORD]

    async def prepare(database: Database) -> None:
        await migrate(database)

    async def repository(database: Database) -> None:
        assert await create_repository(database, "team/app", "library", None)

    def run(line: str, code: int = 0) -> str:
        return invoke(monkeypatch, [*line.split(), "--config", str(config)], code, f"{PASSWORD}\n")

    def change(line: str) -> None:
        run(line)
        done.append(line)

    def made(line: str) -> Any:
        done.append(f"{line} --output json")
        document = json.loads(run(done[-1]))
        secrets.extend([document["token"]] if "token" in document else [])
        return document

    trio.run(ask, database_uri, prepare)
    change("user create root --superuser --password-stdin")
    run("user create root --password-stdin", EXIT_FAILED)
    change("user create alice --password-stdin")
    change("user password alice --password-stdin")
    change("user change alice --email alice@example.com")
    change("org create team --admin root")
    default = made("org add-default team alice read")["id"]
    change(f"org remove-default team {default}")
    made("robot create team+ci")
    made("robot renew team+ci")
    change("team set team devs")
    bound = made("team sync team devs --group devs")
    assert (bound["service"], bound["group"], bound["synced"]) == ("oidc", "devs", None)
    run("team add team devs alice", EXIT_FAILED)
    run("team sync team owners --group devs", EXIT_FAILED)
    change("team unsync team devs")
    run("team unsync team devs", EXIT_FAILED)
    change("team add team devs alice")
    change("team remove team devs alice")
    trio.run(ask, database_uri, repository)
    change("permission set team/app alice write")
    change("permission visibility team/app public")
    change("permission remove team/app alice")
    run("permission remove team/app alice", EXIT_FAILED)
    change("team delete team devs --yes")
    token = made("token create alice laptop")
    change(f"token revoke alice {token['id']}")
    change("token rotate-keys")
    change("robot delete team+ci --yes")
    change("user delete alice --yes")
    run("user list")

    async def written(database: Database) -> list[Line]:
        return [kept.line for kept in await read_lines(database, Filter(), None, 1000)][::-1]

    lines = trio.run(ask, database_uri, written)
    assert [(line.action, " ".join(line.detail["arguments"])) for line in lines] == [
        (name_of(given), given) for given in done
    ]
    for line in lines:
        within, at = about(" ".join(line.detail["arguments"]))
        assert (line.namespace, line.repository) == ("team" if at else within, at)
    assert {line.actor for line in lines if line.actor} == {f"cli:{getpass.getuser()}@{socket.gethostname()}"}
    assert not [line for line in lines if any(secret in repr(line) for secret in secrets)]


@pytest.fixture
def config(database_uri: str, tmp_path: Path) -> str:
    """The file of a registry with a database and stores that are not reached."""
    store = Store("us", "http://127.0.0.1:9", "a", "b", "bucket")
    document = configuration(
        database_uri,
        None,
        {"us": store},
        "path",
        FEATURE_OPEN_REGISTRY=None,
        DATABASE_SECRET_KEY="a secret key for tests",
    )
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(document))
    trio.run(ask, database_uri, migrate)
    return str(file)


@pytest.mark.usefixtures("logs_as_before")
def test_a_name_that_nobody_has_is_refused(monkeypatch: pytest.MonkeyPatch, config: str, database_uri: str) -> None:
    """A slip in a name is no empty list and no organisation without an admin; what is refused is not done, and has no line."""

    def run(line: str, code: int) -> None:
        invoke(monkeypatch, [*shlex.split(line), "--config", config], code)

    run("org create team", 0)
    for line in (
        "org create other --admin nobody",
        "org create other --admin team",
        "org defaults nobody",
        "replication stalled --location mars",
        "robot list nobody",
        "team list nobody",
        "team members team nobody",
        "token list nobody",
        "user change team --superuser",
        "permission set team/app nobody read",
    ):
        run(line, EXIT_FAILED)
    for line in ("token create team ''", "token create team laptop --lifetime 0s", "user change team"):
        run(line, EXIT_CONFIGURATION)
    for line in ("org defaults team", "robot list", "robot list team", "team list team", "team members team owners"):
        run(line, 0)
    assert [line.detail["arguments"][:3] for line in trio.run(ask, database_uri, _written)] == [
        ["org", "create", "team"]
    ]


async def _written(database: Database) -> list[Line]:
    return [kept.line for kept in await read_lines(database, Filter(), None, 1000)][::-1]


def _fails(error: BaseException) -> Callable[[Desk], Awaitable[None]]:
    async def verb(_desk: Desk) -> None:
        async with trio.open_nursery():
            raise error

    return verb


@pytest.mark.usefixtures("logs_as_before")
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (EngineError("a store is away"), "EngineError"),
        (ValueError("a bug"), "ValueError"),
        (Refused("not now"), None),
        (Problem(409, "it is there"), None),
    ],
    ids=lambda given: type(given).__name__ if isinstance(given, BaseException) else "",
)
def test_a_verb_that_breaks_off(
    monkeypatch: pytest.MonkeyPatch, database_uri: str, config: str, error: BaseException, said: str | None
) -> None:
    """What ended in the middle may have changed a part: it has a line that says so. What was refused has none."""
    monkeypatch.setattr("sys.argv", ["antipode", "verify", "--location", "us"])
    with pytest.raises((SystemExit, BaseExceptionGroup)):
        work(config, _fails(error), changes="verify")
    lines = trio.run(ask, database_uri, _written)
    expected = [] if said is None else [{"arguments": ["verify", "--location", "us"], "broken_off": said}]
    assert [line.detail for line in lines] == expected


@pytest.mark.usefixtures("logs_as_before")
def test_what_only_looks_writes_nothing(monkeypatch: pytest.MonkeyPatch, database_uri: str, config: str) -> None:
    """Every command that is not in the audit log works on a database that takes no writes."""
    name = urlsplit(database_uri).path.lstrip("/")

    async def prepare(database: Database) -> None:
        await create_user(database, "alice", None)
        await create_organization(database, "team", "alice")
        assert await create_repository(database, "team/app", "library", None)
        await database.fetch("INSERT INTO location (name, state) VALUES ('us', 'active')")
        await database.fetch(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')

    trio.run(ask, database_uri, prepare)
    failed: dict[str, str] = {}
    for line in READS:
        monkeypatch.setattr("sys.argv", ["antipode", *shlex.split(line)])
        result = CliRunner().invoke(main, [*shlex.split(line), "--config", config], prog_name="antipode")
        if result.exit_code:
            failed[name_of(line)] = result.output
    # What is not there, and a store that is not reached.
    assert set(failed) == {"orphans", "robot federations", "tag history", "team members", "webhook deliveries"}
    assert "read-only" not in "".join(failed.values()), failed
