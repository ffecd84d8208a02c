"""Logs are lines for people or JSON for machines, from all libraries alike, and never carry a secret."""

import io
import json
import logging
from collections.abc import Iterator
from time import thread_time
from typing import Any

import pytest
import structlog

from node import logs


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, configuration = root.handlers, root.level, structlog.get_config()
    yield
    root.handlers = handlers
    root.setLevel(level)
    structlog.configure(**configuration)


def line(stream: io.StringIO) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(stream.getvalue().splitlines()[-1])
    return parsed


def test_json() -> None:
    """Where nobody looks at a terminal each record is one line of JSON with its time, level and logger."""
    stream = io.StringIO()
    logs.set_up(stream=stream)
    structlog.stdlib.get_logger("antipode.test").info("pushed", digest="sha256:1", size=3)
    record = line(stream)
    assert record.pop("timestamp").endswith("Z")
    assert record == {"event": "pushed", "level": "info", "logger": "antipode.test", "digest": "sha256:1", "size": 3}


def test_terminal() -> None:
    """On a terminal the lines are for people."""
    stream = Terminal()
    logs.set_up(stream=stream)
    structlog.stdlib.get_logger("antipode.test").info("pushed", digest="sha256:1")
    assert "pushed" in stream.getvalue()
    with pytest.raises(json.JSONDecodeError):
        json.loads(stream.getvalue())


def test_libraries() -> None:
    """Records of the standard library's logging come out the same way, with their arguments filled in and the request's id."""
    stream = io.StringIO()
    logs.set_up(stream=stream)
    with structlog.contextvars.bound_contextvars(request_id="r1"):
        logging.getLogger("hypercorn.error").warning("odd %s", "thing", extra={"peer": "p"})
    record = line(stream)
    assert (record["event"], record["level"], record["logger"]) == ("odd thing", "warning", "hypercorn.error")
    assert (record["request_id"], record["peer"]) == ("r1", "p")


def test_noisy_libraries() -> None:
    """Libraries that talk much are heard from warnings on."""
    stream = io.StringIO()
    logs.set_up("DEBUG", stream=stream)
    logging.getLogger("botocore.auth").debug("StringToSign")
    logging.getLogger("asyncio").info("Using selector")
    assert stream.getvalue() == ""
    logging.getLogger("botocore").warning("heard")
    assert line(stream)["event"] == "heard"


def test_level() -> None:
    """Records below the level are dropped, and the last call of set_up counts."""
    stream = io.StringIO()
    logs.set_up("DEBUG", stream=io.StringIO())
    logs.set_up("WARNING", stream=stream)
    structlog.stdlib.get_logger("antipode.test").info("dropped")
    structlog.stdlib.get_logger("antipode.test").warning("kept")
    assert len(stream.getvalue().splitlines()) == 1


@pytest.mark.parametrize("terminal", [False, True])
def test_secrets(terminal: bool) -> None:
    """Values of suspicious keys at any depth, passwords in URLs, authorization values and presigned URLs' signatures are hidden."""
    stream = Terminal() if terminal else io.StringIO()
    logs.set_up(stream=stream)
    log = structlog.stdlib.get_logger("antipode.test")
    log.info(
        "to postgresql://user:hunter2@host/db with Bearer hunter2.hunter2",
        password="hunter2",
        nested={"Authorization": "Basic hunter2", "list": [{"secret_key": "hunter2"}]},
        url="https://store/key?X-Amz-Date=1&X-Amz-Signature=hunter2&x=1",
        access_token=b"hunter2",
        error=ValueError("redis://:hunter2@host"),
        digest="sha256:visible",
    )
    logging.getLogger("asyncpg").warning(
        "cannot connect to %s", "postgresql://u:hunter2@h/d", extra={"db_password": "hunter2"}
    )
    assert "hunter2" not in stream.getvalue()
    assert "sha256:visible" in stream.getvalue()
    assert "X-Amz-Date=1" in stream.getvalue()


@pytest.mark.parametrize(
    "piece",
    ["a", "a.", "a-", "a+", ":", "a:", "a:/", "a://", "a://b:", "Basic ", "Bearer\t", "?", "?password=", "&Signature="],
)
def test_no_text_takes_long(piece: str) -> None:
    """To look for secrets in what a client made up takes no longer the longer it is, but for its length: no line stops a node."""
    for text in (piece * (65536 // len(piece)), "https://" + piece * (65536 // len(piece))):
        began = thread_time()
        logs.masked_text(text)
        assert thread_time() - began < 1


@pytest.mark.parametrize("terminal", [False, True])
def test_secrets_in_tracebacks(terminal: bool) -> None:
    """A traceback is logged without local variables, and with secrets in its texts hidden."""
    stream = Terminal() if terminal else io.StringIO()
    logs.set_up(stream=stream)

    def reach(password: str) -> None:
        raise ConnectionError(f"cannot reach postgresql://user:{password}@host/db")

    given = "hunter2"
    try:
        reach(given)
    except ConnectionError:
        structlog.stdlib.get_logger("antipode.test").exception("failed")
    assert "ConnectionError" in stream.getvalue()
    assert "hunter2" not in stream.getvalue()


@pytest.mark.parametrize("key", ["key", "digest", "request_id", "author", "location", "passed", "monkey"])
def test_harmless_keys(key: str) -> None:
    """Keys that only look like secrets to a careless pattern are shown."""
    assert logs.mask_secrets(None, "info", {key: "value"}) == {key: "value"}
