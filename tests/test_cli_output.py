"""Commands whose output goes nowhere, or that Ctrl-C ends, end in order: no traceback, and an exit code that says so."""

import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest
import trio
import yaml

from engines.crossing import open_bridge
from node.commands.options import EXIT_CONFIGURATION, EXIT_FAILED
from node.commands.tables import show
from node.records.collect import KINDS
from node.records.migrate import migrate
from node.records.postgres import open_database
from tests.cluster import program

_SECONDS = 60.0
_DIGEST = f"sha256:{'0123456789abcdef' * 4}"
_SHOW = """\
import sys, trio, click
from node.cli import main
from node.commands.tables import show
@main.command()
def shown():
    async def verb():
        async with trio.open_nursery():
            show(None, "table", ("rows", [{"a": 1}]))
    trio.run(verb)
main(["shown"])
"""


def _run(words: list[str], output: int) -> tuple[int, str]:
    done = subprocess.run(words, stdout=output, stderr=subprocess.PIPE, text=True, timeout=_SECONDS, check=False)
    return done.returncode, done.stderr


def test_a_reader_that_has_left_is_no_bug() -> None:
    """As in `antipode audit | head -1`: what is shown from within a nursery ends without a word."""
    reads, writes = os.pipe()
    os.close(reads)
    try:
        assert _run([*program()[:2], _SHOW], writes) == (EXIT_FAILED, "")
    finally:
        os.close(writes)


@pytest.mark.parametrize("inside", [True, False])
def test_a_full_disk_is_one_line(tmp_path: Path, inside: bool) -> None:
    """Where the output cannot be written, the error says that, whether a nursery is around it or not."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(_document(tmp_path)))
    words = [*program()[:2], _SHOW] if inside else [*program(), "config", "check", str(config)]
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        assert _run(words, full.fileno()) == (
            EXIT_FAILED,
            "Error: the output cannot be written: No space left on device\n",
        )


@pytest.mark.parametrize("words", [("--help",), ("--version",), ("audit", "--help")], ids=" ".join)
def test_a_manual_that_cannot_be_written_is_one_line(words: tuple[str, ...]) -> None:
    """What is shown while the command line is read counts as well."""
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        code, said = _run([*program(), *words], full.fileno())
    assert (code, said) == (EXIT_FAILED, "Error: the output cannot be written: No space left on device\n")


@pytest.mark.parametrize("verb", ["verify", "orphans"])
def test_a_location_that_is_not_there_is_a_wrong_command_line(database_uri: str, tmp_path: Path, verb: str) -> None:
    """And no copy that is missing or wrong, which the exit code 1 of `verify` says."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({**_document(tmp_path), "DB_URI": database_uri}))

    async def prepare() -> None:
        async with open_bridge(), open_database(database_uri, most=1) as opened:
            await migrate(opened)

    trio.run(prepare)
    words = [*program(), verb, "--location", "elsewhere", "--config", str(config)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=_SECONDS, check=False)
    assert done.returncode == EXIT_CONFIGURATION
    assert done.stderr == "--location: found 'elsewhere'; DISTRIBUTED_STORAGE_CONFIG has here\n"


def test_ctrl_c_ends_a_wait_without_a_traceback() -> None:
    """Who loses patience with `antipode wait` is told nothing of nurseries."""
    with socket.create_server(("127.0.0.1", 0)) as registry:
        registry.settimeout(_SECONDS)
        image = f"127.0.0.1:{registry.getsockname()[1]}/team/app:v1"
        waiting = subprocess.Popen(
            [*program(), "wait", image, "--location", "eu"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        asked, _ = registry.accept()
        with asked:
            waiting.send_signal(signal.SIGINT)
            _, said = waiting.communicate(timeout=_SECONDS)
    assert (waiting.returncode, said.strip()) == (EXIT_FAILED, "Aborted!")


def test_a_row_is_a_line_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    """Digests stay whole for grep however wide a table is, and a title is not folded to it."""
    row = {"digest": _DIGEST, "reason": "it burns " * 40, "key": _DIGEST}
    show(None, "table", ("what nothing can move", [row]), ("a title that is wide", [{"a": 1}]))
    title, _, found, wide, *_ = capsys.readouterr().out.splitlines()
    assert (title, wide) == ("what nothing can move", "a title that is wide")
    assert found.count(_DIGEST) == 2


def test_what_was_collected_has_the_same_keys_each_time(database_uri: str, tmp_path: Path) -> None:
    """A program that reads the JSON finds every kind, also where nothing went; a pause says what ends it."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({**_document(tmp_path), "DB_URI": database_uri}))

    async def database(sql: str | None) -> None:
        async with open_bridge(), open_database(database_uri, most=1) as opened:
            await (migrate(opened) if sql is None else opened.fetch(sql))

    trio.run(database, None)
    words = [*program(), "collect", "--config", str(config), "--output", "json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=_SECONDS, check=True)
    assert json.loads(done.stdout)["removed"] == dict.fromkeys(KINDS, 0)
    trio.run(
        database,
        """INSERT INTO bookmark (name, value) VALUES ('collection', '{"identity": "another"}')
        ON CONFLICT (name) DO UPDATE SET value = excluded.value""",
    )
    refused = subprocess.run(words, capture_output=True, text=True, timeout=_SECONDS, check=False)
    assert (refused.returncode, refused.stdout) == (EXIT_FAILED, "")
    assert "Run `antipode repair --after-restore`" in refused.stderr


def _document(folder: Path) -> dict[str, object]:
    return {
        "SERVER_HOSTNAME": "registry.example.com",
        "PREFERRED_URL_SCHEME": "http",
        "DB_URI": "postgresql://antipode@db.example.com/antipode",
        "DISTRIBUTED_STORAGE_CONFIG": {"here": ["LocalStorage", {"storage_path": str(folder / "store")}]},
        "FEATURE_OPEN_REGISTRY": True,
    }
