"""Structured logs: lines for people on a terminal, JSON otherwise, the libraries' records too; secrets never get out."""

import logging
import re
import sys
from collections.abc import Mapping
from typing import TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from engines.trace import current_trace

MASK = "[hidden]"

SUSPICIOUS_KEY = re.compile(
    r"pass(word|wd|phrase)?$|passwd|password|secret|token|authorization|cookie|credential|signature|(access|private|api)[_-]?key|^db_uri$",
    re.IGNORECASE,
)
SUSPICIOUS_TEXT = (
    # scheme://user:password@host, from the scheme's end on: looking for its beginning takes minutes in a path that a client made up
    (re.compile(r"(?P<keep>(?<=[a-z0-9+.-])://[^\s:/@]*:)[^\s@/]+(?=@)", re.IGNORECASE), rf"\g<keep>{MASK}"),
    # Authorization values
    (re.compile(r"\b(?P<keep>(Bearer|Basic)\s+)[A-Za-z0-9+/_=.~-]{8,}", re.IGNORECASE), rf"\g<keep>{MASK}"),
    # the part of a presigned URL that makes it a key to the object, and a password in the query of a database's URI
    (
        re.compile(
            r"(?P<keep>[?&](X-Amz-Signature|X-Amz-Security-Token|Signature|password)=)[^&\s\"']+", re.IGNORECASE
        ),
        rf"\g<keep>{MASK}",
    ),
)

_machine_stream: TextIO | None = None

NOISY = ("aiobotocore", "aioboto3", "boto3", "botocore", "asyncio", "urllib3", "hpack")
"""Libraries whose lines below WARNING say nothing about this registry."""


def machine_stream() -> TextIO | None:
    """Return the stream that gets JSON lines, None where lines are for people."""
    return _machine_stream


def set_up(level: str = "INFO", *, stream: TextIO | None = None, as_json: bool | None = None) -> None:
    """Send all logs to `stream` (default: standard error), as JSON unless it is a terminal or `as_json` decides.

    Takes the root logger over: the standard library's records (hypercorn, asyncpg, botocore, trio-asyncio) get the same processors.
    `level` is a name of the logging module. May be called again; the last call counts.
    """
    global _machine_stream
    target = sys.stderr if stream is None else stream
    json = not target.isatty() if as_json is None else as_json
    _machine_stream = target if json else None
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        add_request_id,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.ExtraAdder(),
        structlog.processors.StackInfoRenderer(),
        # Plain text and before the mask: the rich renderings show local variables, where secrets live.
        structlog.processors.format_exc_info,
        mask_secrets,
    ]
    renderer: Processor = structlog.processors.JSONRenderer(default=str) if json else structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in NOISY:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


def add_request_id(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Say for which request a line was written (a structlog processor).

    Binding the id to structlog's context at every request cost a tenth of a warm pull, and most write no line.
    """
    trace = current_trace()
    if trace is not None:
        event.setdefault("request_id", trace.id)
    return event


def mask_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Hide the values of suspicious keys, at any depth, and secrets inside of texts and tracebacks (a structlog processor)."""
    return {key: _masked(key, value) for key, value in event.items()}


def _masked(key: object, value: object) -> object:
    if isinstance(key, str) and value is not None and SUSPICIOUS_KEY.search(key):
        return MASK
    match value:
        case str():
            return masked_text(value)
        case Mapping():
            return {inner: _masked(inner, held) for inner, held in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_masked(None, held) for held in value]
        case BaseException():
            return masked_text(repr(value))
        case _:
            return value


def masked_text(text: str) -> str:
    """Return the text with passwords in URLs, authorization values and signatures of presigned URLs hidden."""
    for pattern, replacement in SUSPICIOUS_TEXT:
        text = pattern.sub(replacement, text)
    return text
