"""The command line: help, checks and exit codes; a real node that starts, refuses to start, and stops in order."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import trio
import yaml
from click.testing import CliRunner, Result

from node.cli import EXIT_CLEAN, main, run
from node.commands.options import EXIT_CONFIGURATION, EXIT_FAILED
from node.config.keys import ENVIRONMENT
from node.services import NodeFailure
from scripts.services.processes import free_ports

from .cluster import START_SECONDS
from .configurations import EXAMPLE

PROGRAM = Path(sys.executable).parent / "antipode"


def invoke(*words: str | Path, **environ: str) -> Result:
    runner = CliRunner(env={**dict.fromkeys(ENVIRONMENT), **environ})
    return runner.invoke(main, [str(word) for word in words], prog_name="antipode")


@pytest.fixture
def example(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(EXAMPLE)
    return path


class TestCheck:
    def test_a_good_file_is_described(self, example: Path) -> None:
        """What the node would do, and exit code 0; the environment counts as it would for `serve`."""
        result = invoke("config", "check", example, QUAY_DISTRIBUTED_STORAGE_PREFERENCE="eu,us")
        assert result.exit_code == EXIT_CLEAN
        said = " ".join(result.output.split())
        for part in (
            "http://127.0.0.1:8100",
            "127.0.0.1:5544, database antipode",
            "redis 127.0.0.1:6380",
            "every blob is owed a copy in us, eu",
            "1. eu RadosGWStorage http://127.0.0.1:7481/eu-blobs/registry/",
            "2. us RadosGWStorage",
            "pulls from 16 KiB on redirected to the store",
            "at most 20 GiB",
            "FEATURE_OPEN_REGISTRY: anyone",
        ):
            assert part in said

    def test_a_bad_file_has_all_its_errors_named(self, tmp_path: Path) -> None:
        """Every error on a line of its own on standard error, exit code 2, nothing on standard output."""
        path = tmp_path / "bad.yaml"
        path.write_text(EXAMPLE.replace("[us, eu]", "[us, ap]").replace("http\n", "gopher\n"))
        result = invoke("config", "check", path)
        assert result.exit_code == EXIT_CONFIGURATION
        assert result.stdout == ""
        lines = result.stderr.splitlines()
        assert lines[0] == f"{path}: 3 errors"
        assert [line.split(":")[0] for line in lines[1:4]] == [
            "  - PREFERRED_URL_SCHEME",
            "  - DISTRIBUTED_STORAGE_PREFERENCE",
            "  - DISTRIBUTED_STORAGE_DEFAULT_LOCATIONS",
        ]

    def test_the_file_may_come_from_the_option_or_the_environment(self, example: Path) -> None:
        """An argument, --config or ANTIPODE_CONFIG name the file; without any of them the error says so."""
        assert invoke("config", "check", "--config", example).exit_code == EXIT_CLEAN
        assert invoke("config", "check", ANTIPODE_CONFIG=str(example)).exit_code == EXIT_CLEAN
        nothing = invoke("config", "check")
        assert nothing.exit_code == EXIT_CONFIGURATION
        assert "--config" in nothing.stderr
        assert "ANTIPODE_CONFIG" in nothing.stderr

    def test_the_deployed_example_is_good(self) -> None:
        """The example that ships with the registry passes its own check."""
        path = Path(__file__).parent.parent / "deploy" / "config.example.yaml"
        result = invoke("config", "check", path)
        assert result.exit_code == EXIT_CLEAN, result.output
        assert "unknown" not in result.output


class TestManual:
    def test_the_help_explains_the_picture(self) -> None:
        """Environment variables, exit codes and a first command stand in the help."""
        said = invoke("--help").output
        for part in (*ENVIRONMENT, "Exit codes:", "antipode config check config.yaml", "serve", "PostgreSQL"):
            assert part in said

    def test_every_command_has_help(self) -> None:
        """Every verb explains itself."""
        for words in (("serve",), ("config",), ("config", "check")):
            result = invoke(*words, "--help")
            assert result.exit_code == EXIT_CLEAN
            assert len(result.output) > 150

    def test_the_version(self) -> None:
        """One line: the program and its version."""
        assert re.fullmatch(r"antipode \S+\n", invoke("--version").output)

    @pytest.mark.parametrize("number", ["9" * 19, "9" * 5000, "-1", "x", "\N{ARABIC-INDIC DIGIT THREE}"])
    @pytest.mark.parametrize(
        "words",
        [
            ("audit", "--before"),
            ("org", "remove-default", "team", "--"),
            ("robot", "remove-federation", "team+ci", "--"),
            ("webhook", "redeliver", "hook", "--"),
            ("webhook", "deliveries", "hook", "--after"),
            ("policy", "set", "team", "--required", "us", "--expect-version"),
        ],
        ids=" ".join,
    )
    def test_a_number_that_the_database_cannot_have_is_refused(self, words: tuple[str, ...], number: str) -> None:
        """With what was found, and before anything is asked."""
        result = invoke(*words, number)
        assert result.exit_code == EXIT_CONFIGURATION
        assert "write a number of at most 18 digits" in result.output

    @pytest.mark.parametrize("url", ["ftp://x", "http://", "registry.example.com", "https://registry.example.com/v2"])
    def test_a_registry_that_is_no_address_is_refused(self, url: str) -> None:
        """A drill that cannot begin so has asked nobody."""
        result = invoke("drill", "us", "--registry", url)
        assert result.exit_code == EXIT_CONFIGURATION
        assert f"found {url!r}; write http:// or https:// and a host" in result.output

    def test_a_registry_that_never_answers(self) -> None:
        """The tag is shown as it was given, whatever is known of it; a bare number of seconds is a time."""
        (port,) = free_ports(1)
        result = invoke("wait", f"127.0.0.1:{port}/team/app:v1", "--location", "eu", "--timeout", "0.2")
        assert result.exit_code == 2
        assert result.output.splitlines()[0] == f"127.0.0.1:{port}/team/app:v1"

    def test_a_word_that_is_no_command_is_refused(self) -> None:
        """A slip on the command line starts nothing."""
        assert invoke("sevre").exit_code == EXIT_CONFIGURATION

    @pytest.mark.parametrize("bind", ["8080", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:99999", "http://x:1"])
    def test_a_wrong_address_is_refused(self, example: Path, bind: str) -> None:
        """--bind takes host:port, and the error shows what was found."""
        result = invoke("serve", "--config", example, "--bind", bind)
        assert result.exit_code == EXIT_CONFIGURATION
        assert repr(bind) in result.stderr


class TestOutcomes:
    @pytest.mark.parametrize(
        ("error", "code", "traceback"),
        [
            (None, EXIT_CLEAN, False),
            (NodeFailure("the database is away"), EXIT_FAILED, False),
            (ExceptionGroup("", [ExceptionGroup("", [NodeFailure("the database is away")])]), EXIT_FAILED, False),
            (KeyboardInterrupt(), EXIT_CLEAN, False),
            (ValueError("a bug"), EXIT_FAILED, True),
            (ExceptionGroup("", [NodeFailure("away"), ValueError("a bug")]), EXIT_FAILED, True),
        ],
    )
    def test_what_ends_a_node_decides_its_exit_code(
        self, error: BaseException | None, code: int, traceback: bool, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """An expected failure is one line; a bug has its traceback; both are exit code 1. Ctrl-C is a clean stop."""

        async def node() -> None:
            await trio.lowlevel.checkpoint()
            if error is not None:
                raise error

        assert run(node) == code
        said = "".join(capsys.readouterr())
        assert ("Traceback" in said) is traceback
        assert ("away" in said) is (isinstance(error, NodeFailure | ExceptionGroup))


class Process:
    """A node as an operator runs it, with its log."""

    def __init__(self, folder: Path, database_uri: str, port: int) -> None:
        self.config = folder / "config.yaml"
        document = {
            "SERVER_HOSTNAME": f"127.0.0.1:{port}",
            "PREFERRED_URL_SCHEME": "http",
            "DB_URI": database_uri,
            "DISTRIBUTED_STORAGE_CONFIG": {"here": ["LocalStorage", {"storage_path": str(folder / "store")}]},
            "FEATURE_OPEN_REGISTRY": True,
        }
        (folder / "store").mkdir()
        self.config.write_text(yaml.safe_dump(document))
        environ = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
        self.process = subprocess.Popen(
            [PROGRAM, "serve", "--bind", f"127.0.0.1:{port}"],
            env={**environ, "ANTIPODE_CONFIG": str(self.config)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []

    def wait_for(self, text: str) -> None:
        """Wait until the log says so."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if text in line:
                return
        pytest.fail(f"the node ended without saying {text!r}:\n{''.join(self.lines)}")

    def wait_for_end(self, seconds: float = START_SECONDS) -> int:
        """Wait for the end and return the exit code."""
        _, rest = self.process.communicate(timeout=seconds)
        self.lines += rest.splitlines()
        return self.process.returncode

    def failures(self) -> list[dict[str, str]]:
        """Return what the program says of its own failure; every line of the log is a JSON record."""
        events = [json.loads(line) for line in self.lines]
        return [event for event in events if event["logger"] == "antipode" and event["level"] in {"error", "critical"}]


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[list[Process]]:
    started: list[Process] = []
    yield started
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
        each.process.communicate()


class TestServe:
    @pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
    def test_a_node_starts_and_stops_in_order(
        self, database_uri: str, tmp_path: Path, processes: list[Process], stop: signal.Signals
    ) -> None:
        """It says where it listens, answers there, and ends with 0 after a signal; its log is JSON without a terminal."""
        (port,) = free_ports(1)
        processes.append(node := Process(tmp_path, database_uri, port))
        node.wait_for("node is up")
        with closing(socket.create_connection(("127.0.0.1", port), timeout=30)) as client:
            client.sendall(b"GET /v2/ HTTP/1.1\r\nHost: registry\r\nConnection: close\r\n\r\n")
            assert client.recv(12) == b"HTTP/1.1 200"
        node.process.send_signal(stop)
        assert node.wait_for_end() == EXIT_CLEAN
        assert node.failures() == []

    def test_an_unreachable_database_is_one_line(self, tmp_path: Path, processes: list[Process]) -> None:
        """A node whose database is away does not start: exit code 1, one clear line, no traceback, no password."""
        port, nobody = free_ports(2)
        processes.append(node := Process(tmp_path, f"postgresql://antipode:hunter2@127.0.0.1:{nobody}/antipode", port))
        assert node.wait_for_end() == EXIT_FAILED
        (failure,) = node.failures()
        assert "database" in failure["reason"]
        assert "Traceback" not in "".join(node.lines)
        assert "hunter2" not in "".join(node.lines)

    def test_a_taken_port_is_one_line(self, database_uri: str, tmp_path: Path, processes: list[Process]) -> None:
        """A node whose address is taken does not start: exit code 1, and the line names the address."""
        with closing(socket.create_server(("127.0.0.1", 0))) as other:
            port = other.getsockname()[1]
            processes.append(node := Process(tmp_path, database_uri, port))
            assert node.wait_for_end() == EXIT_FAILED
        (failure,) = node.failures()
        assert str(port) in failure["reason"]
        assert "Traceback" not in "".join(node.lines)

    def test_a_wrong_configuration_starts_nothing(self, tmp_path: Path, processes: list[Process]) -> None:
        """The errors are lines on standard error, exit code 2."""
        processes.append(node := Process(tmp_path, "mysql://antipode:hunter2@127.0.0.1/antipode", 1))
        assert node.wait_for_end() == EXIT_CONFIGURATION
        assert node.lines[0] == f"{node.config}: 1 error"
        assert "DB_URI" in node.lines[1]
        assert "hunter2" not in "".join(node.lines)
