"""Access lines as JSON, in batches and off the event loop: the usual way through structlog costs a third of a warm pull.

(py-spy, 16 connections on a warm digest: 32 % of the process's samples in `log_exchange`; queueing here is below 2 %.)
"""

import json
import logging
from collections import deque
from datetime import UTC, datetime
from time import time
from typing import TextIO

import trio

from node.logs import machine_stream
from node.web.access import Exchange, level_of

MOST_WAITING = 10_000
"""Lines that may wait. A stream that is slower than the node loses lines, which are counted, and never holds a request up."""

_BATCH = 500
_EVERY = 0.05
"""Seconds that a line waits at most for others to be written with it."""


class AccessWriter:
    """Takes the place of `log_exchange` where lines are for machines. Run `run` in a nursery."""

    def __init__(self, stream: TextIO, node: str, *, debug: bool = False) -> None:
        self._stream = stream
        self._node = node
        self._debug = debug
        self._waiting: deque[tuple[float, float, Exchange]] = deque()
        self._arrived = trio.Event()
        self.dropped = 0

    def __call__(self, exchange: Exchange, seconds: float) -> None:
        """Take one ended request in. Never waits."""
        if not self._debug and level_of(exchange) == "debug":
            return
        if len(self._waiting) >= MOST_WAITING:
            self.dropped += 1
            return
        self._waiting.append((time(), seconds, exchange))
        self._arrived.set()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write for ever; what is waiting at the end is written, too."""
        task_status.started()
        try:
            while True:
                await self._arrived.wait()
                self._arrived = trio.Event()
                while self._waiting:
                    # In a thread: whoever reads the stream may be slow. The batch is taken there, so nothing is lost in between.
                    await trio.to_thread.run_sync(self._write_batch, abandon_on_cancel=False)
                await trio.sleep(_EVERY)
        finally:
            while self._waiting:
                self._write_batch()

    def _write_batch(self) -> None:
        lines: list[str] = []
        while self._waiting and len(lines) < _BATCH:
            lines.append(self._line(*self._waiting.popleft()))
        self._stream.write("\n".join(lines) + "\n")
        self._stream.flush()

    def _line(self, at: float, seconds: float, exchange: Exchange) -> str:
        return json.dumps(
            {
                **exchange.fields(seconds),
                "event": "request",
                "node": self._node,
                "logger": "antipode.access",
                "level": level_of(exchange),
                "timestamp": datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z"),
            }
        )


def access_writer(node: str) -> AccessWriter | None:
    """Return the writer for this process's logs, None where lines are for people or not wanted at all."""
    stream, log = machine_stream(), logging.getLogger("antipode.access")
    if stream is None or not log.isEnabledFor(logging.INFO):
        return None
    return AccessWriter(stream, node, debug=log.isEnabledFor(logging.DEBUG))
