"""Many clients that pull one image at once, in a process of their own: python -m tests.nemesis.crowd URL REPOSITORY DIGEST NUMBER.

In the process that carries all proxies they would hold up every byte between the nodes and their database, and by httpx they would
take the nodes' processor. Prints their operations as JSON; times are those of the machine's monotonic clock, which all share.
"""

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import trio
from attrs import asdict, define, evolve

from tests.nemesis.client import DOCKER, repeat
from tests.nemesis.history import Failure, History, Operation, RequestFailed, WrongBytes
from tests.nemesis.images import MANIFEST_TYPE, digest_of, parts_of

_SECONDS = 300.0
_PATIENCE = 60.0
_CHUNK = 64 * 1024
_OK = 200


async def pull_at_once(url: str, repository: str, digest: str, number: int) -> list[Operation]:
    """Let `number` clients pull an image at once, and return what each of them saw. Raises TooSlowError after minutes."""
    words = [sys.executable, "-m", "tests.nemesis.crowd", url, repository, digest, str(number)]
    with trio.fail_after(_SECONDS):
        done = await trio.run_process(words, capture_stdout=True, cwd=Path(__file__).parents[2])
    ahead = trio.current_time() - time.monotonic()
    return [read(told, ahead) for told in json.loads(done.stdout)]


def read(told: dict[str, Any], ahead: float) -> Operation:
    """Return an operation that `tell` wrote; `ahead`: seconds that Trio's clock here is before the machine's."""
    failures = [Failure(each["began"] + ahead, each["ended"] + ahead, each["reason"]) for each in told["failures"]]
    times = {name: told[name] + ahead for name in ("began", "ended")}
    return Operation(**{**told, **times, "failures": failures})


def tell(operation: Operation, ahead: float) -> dict[str, Any]:
    """Return an operation as JSON can have it; `ahead` as for `read`."""
    failures = [evolve(each, began=each.began - ahead, ended=each.ended - ahead) for each in operation.failures]
    told = evolve(operation, began=operation.began - ahead, ended=operation.ended - ahead, failures=failures)
    return asdict(told)


@define(eq=False)
class _Puller:
    """A client as docker's, of as few steps as one can be made of: one connection, opened anew where it was closed."""

    host: str
    port: int
    operation: Operation
    stream: trio.SocketStream | None = None

    async def pull(self) -> None:
        """Pull the operation's image and check every byte. Raises RequestFailed, WrongBytes."""
        base, digest = f"/v2/{self.operation.repository}", str(self.operation.digest)
        manifest = await self._get(f"{base}/manifests/{digest}", digest)
        for blob, _size in parts_of(manifest):
            await repeat(DOCKER.blob_delays, partial(self._get, f"{base}/blobs/{blob}", blob))

    async def close(self) -> None:
        if self.stream is not None:
            await trio.aclose_forcefully(self.stream)
            self.stream = None

    async def _get(self, path: str, digest: str) -> bytes:
        began, kept = trio.current_time(), self.stream is not None
        try:
            with trio.fail_after(_PATIENCE):
                try:
                    status, body = await self._ask(path)
                except (OSError, trio.BrokenResourceError):
                    if not kept:
                        raise
                    status, body = await self._ask(path)
        except (OSError, trio.BrokenResourceError, trio.TooSlowError) as error:
            await self.close()
            raise self._failed(began, f"GET {path}: {error!r}") from error
        if status != _OK:
            raise self._failed(began, f"GET {path}: {status} {body[:500].decode(errors='replace')}")
        if digest_of(body) != digest:
            raise WrongBytes(f"GET {path}: {len(body)} bytes, {digest_of(body)}")
        return body

    async def _ask(self, path: str) -> tuple[int, bytes]:
        """Send one request; return the answer's status and body. Raises OSError, BrokenResourceError."""
        if self.stream is None:
            self.stream = await trio.open_tcp_stream(self.host, self.port, happy_eyeballs_delay=_PATIENCE)
        try:
            head = f"GET {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nAccept: {MANIFEST_TYPE}\r\n\r\n"
            await self.stream.send_all(head.encode())
            got = b""
            while (end := got.find(b"\r\n\r\n")) < 0:
                got += await self._more()
            first, *lines = got[:end].decode("latin-1").split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            body = bytearray(got[end + 4 :])
            while len(body) < int(headers["content-length"]):
                body += await self._more()
        except BaseException:
            await self.close()
            raise
        if headers.get("connection") == "close":
            await self.close()
        return int(first.split()[1]), bytes(body)

    async def _more(self) -> bytes:
        assert self.stream is not None
        data = await self.stream.receive_some(_CHUNK)
        if not data:
            raise trio.BrokenResourceError("closed in the middle")
        return bytes(data)

    def _failed(self, began: float, reason: str) -> RequestFailed:
        self.operation.failures.append(Failure(began, trio.current_time(), reason))
        return RequestFailed(reason)


async def _main(url: str, repository: str, digest: str, number: int) -> None:
    history, address = History(), urlsplit(url)

    async def one(place: int) -> None:
        operation = Operation("pull", f"crowd-{place}", "streams", repository, None, trio.current_time(), digest=digest)
        puller = _Puller(str(address.hostname), address.port or 80, operation)
        with history.record(operation):
            await puller.pull()
        await puller.close()

    async with trio.open_nursery() as nursery:
        for place in range(number):
            nursery.start_soon(one, place)
    ahead = trio.current_time() - time.monotonic()
    print(json.dumps([tell(operation, ahead) for operation in history.operations]))


if __name__ == "__main__":
    url, repository, digest, number = sys.argv[1:]
    trio.run(_main, url, repository, digest, int(number))
