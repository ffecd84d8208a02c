"""Access lines as JSON, in batches and off the event loop: the usual way through structlog costs a third of a warm pull.

(py-spy, 16 connections on a warm digest: 32 % of the process's samples in `log_exchange`; queueing here is below 2 %.)
"""

import logging
from collections import deque
from datetime import UTC, datetime
from functools import lru_cache
from json.encoder import encode_basestring_ascii as _quoted
from time import time
from typing import TextIO

import trio

from node.logs import machine_stream
from node.web.access import Exchange, Told, level_of

MOST_WAITING = 10_000
"""Lines that may wait. A stream that is slower than the node loses lines, which are counted, and never holds a request up."""

_BATCH = 500
EVERY = 0.2
"""Seconds that a line waits at most for others to be written with it: a batch wakes a thread, and that this one, 250 us in all."""


class AccessWriter:
    """Takes the place of `log_exchange` where lines are for machines. Run `run` in a nursery."""

    def __init__(self, stream: TextIO, node: str, *, debug: bool = False) -> None:
        self._stream = stream
        self._node = _quoted(node)
        self._debug = debug
        self._waiting: deque[str] = deque()
        self._arrived = trio.Event()
        self._told = False
        """Whether `run` knows that lines wait."""
        self.dropped = 0

    def __call__(self, exchange: Exchange, seconds: float) -> None:
        """Take one ended request in. Never waits."""
        self.again(exchange)(exchange.id, exchange.client, seconds)

    def again(self, exchange: Exchange) -> Told:
        """Return what takes in requests that end like this one."""
        level, waiting = level_of(exchange), self._waiting
        if level == "debug" and not self._debug:
            return lambda _made, _client, _seconds: None
        theirs = f'"client_request_id": {_quoted(exchange.client_id)}, ' if exchange.client_id else ""
        begins = (
            f'{{"method": {_quoted(exchange.method)}, "path": {_quoted(exchange.path)}, "status": {exchange.status}, '
            f'"sent": {exchange.sent}, "outcome": "{exchange.outcome}", "answered": {_quoted(exchange.answered)}, '
        )
        ends = (
            f'{theirs}"event": "request", "node": {self._node}, "logger": "antipode.access", "level": "{level}", '
            f'"timestamp": "'
        )

        def told(made: str, client: str, seconds: float) -> None:
            if len(waiting) >= MOST_WAITING:
                self.dropped += 1
                return
            # Made at once: a thread that makes lines takes the interpreter from the event loop at every system call of a
            # request. Written out, it takes 3 us and not the 8 of json.dumps, and no exchange has to be kept.
            at = time()
            second = int(at)
            waiting.append(
                f'{begins}"duration": {seconds:.6f}, "request_id": {_quoted(made)}, "client": {_quoted(client)}, '
                f'{ends}{_moment(second)}.{int((at - second) * 1e6):06d}Z"}}'
            )
            if not self._told:
                self._told = True
                self._arrived.set()

        return told

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write for ever; what is waiting at the end is written, too."""
        task_status.started()
        try:
            while True:
                await self._arrived.wait()
                self._arrived, self._told = trio.Event(), False
                whole = True
                while whole:
                    # In a thread: whoever reads the stream may be slow. The batch is taken there, so nothing is lost in between.
                    # What came meanwhile waits for more, or one batch after the other would be a line or two.
                    whole = await trio.to_thread.run_sync(self._write_batch, abandon_on_cancel=False)
                await trio.sleep(EVERY)
        finally:
            while self._waiting:
                self._write_batch()

    def _write_batch(self) -> bool:
        """Write what waits; return whether it was a whole batch."""
        lines: list[str] = []
        while self._waiting and len(lines) < _BATCH:
            lines.append(self._waiting.popleft())
        if lines:
            self._stream.write("\n".join(lines) + "\n")
            self._stream.flush()
        return len(lines) == _BATCH


@lru_cache(maxsize=4)
def _moment(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def access_writer(node: str) -> AccessWriter | None:
    """Return the writer for this process's logs, None where lines are for people or not wanted at all."""
    stream, log = machine_stream(), logging.getLogger("antipode.access")
    if stream is None or not log.isEnabledFor(logging.INFO):
        return None
    return AccessWriter(stream, node, debug=log.isEnabledFor(logging.DEBUG))
