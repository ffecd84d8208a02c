"""The test's directory as Active Directory would tell it: long lists come in parts (`member;range=0-1499`), and some go wrong.

It stands before the real server and changes nothing but that: what a test asks of the one holds for the other.
"""

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum

from attrs import define, field

_BIND, _SEARCH, _ENTRY, _DONE = 0x60, 0x63, 0x64, 0x65
_ENDS = {_BIND: 0x61, _SEARCH: _DONE}
_SEQUENCE, _SET, _TEXT, _ENUMERATED, _INTEGER = 0x30, 0x31, 0x04, 0x0A, 0x02
_RANGE = b";range="


class Fault(Enum):
    """What goes wrong with every part behind the first one."""

    REFUSED = "insufficientAccessRights"
    GONE = "the entry is not there any more"
    FORGOTTEN = "the entry comes without the list"
    AGAIN = "the first part comes again"
    EMPTY = "nothing comes, and it is not the end"


_RESULTS: Mapping[Fault | None, int] = {Fault.REFUSED: 50, Fault.GONE: 32}


@define(eq=False)
class Ranged:
    """A server on a loopback port that hands on what another one says, `most` values at once."""

    _port: int = field(alias="port")
    most: int = 2
    fault: Fault | None = None
    asked: list[str] = field(factory=list, init=False)
    """The parts that somebody asked for."""
    searches: int = field(default=0, init=False)
    _listener: socket.socket = field(init=False)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._listener.getsockname()[1])

    @contextmanager
    def serve(self) -> Iterator["Ranged"]:
        """Serve until the end of the block."""
        with socket.create_server(("127.0.0.1", 0)) as self._listener:
            thread = threading.Thread(target=self._accept, daemon=True)
            thread.start()
            try:
                yield self
            finally:
                self._listener.shutdown(socket.SHUT_RDWR)
                thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._converse, args=(client,), daemon=True).start()

    def _converse(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._port)) as server:
            while (message := _read(client)) is not None:
                (_, number), (kind, _) = _parts(_parts(message)[0][1])[:2]
                parts = dict[bytes, int]()
                if kind == _SEARCH:
                    self.searches += 1
                    message, parts = self._request(message)
                server.sendall(message)
                while kind in _ENDS:
                    answer = _read(server)
                    if answer is None:
                        return
                    done, answers = self._answer(answer, number, parts, _ENDS[kind])
                    client.sendall(answers)
                    if done:
                        break

    def _request(self, message: bytes) -> tuple[bytes, dict[bytes, int]]:
        """Return a search for whole lists, and which parts of them were asked for."""
        (_, content), *_ = _parts(message)
        number, (kind, body), *controls = _parts(content)
        *fields, (_, attributes) = _parts(body)
        asked, parts = [], dict[bytes, int]()
        for _, name in _parts(attributes):
            plain, mark, wanted = name.partition(_RANGE)
            if mark:
                self.asked.append(name.decode())
                parts[plain.lower()] = int(wanted.partition(b"-")[0])
            asked.append((_TEXT, plain))
        body = _join([*fields, (_SEQUENCE, _join(asked))])
        return _element(_SEQUENCE, _join([number, (kind, body), *controls])), parts

    def _answer(self, message: bytes, number: bytes, parts: dict[bytes, int], end: int) -> tuple[bool, bytes]:
        (_, content), *_ = _parts(message)
        head, (kind, body), *controls = _parts(content)
        if kind != _ENTRY:
            if parts and kind == _DONE and self.fault in _RESULTS:
                refusal = _join([(_ENUMERATED, bytes([_RESULTS[self.fault]])), (_TEXT, b""), (_TEXT, b"")])
                return True, _element(_SEQUENCE, _join([(_INTEGER, number), (_DONE, refusal)]))
            return kind == end, message
        if parts and self.fault in _RESULTS:
            return False, b""
        name, (_, attributes) = _parts(body)
        told = []
        for _, attribute in _parts(attributes):
            (_, called), (_, values) = _parts(attribute)
            told += [
                (_SEQUENCE, _join([(_TEXT, as_called), (_SET, _join([(_TEXT, value) for value in some]))]))
                for as_called, some in self._ranged(called, [value for _, value in _parts(values)], parts)
            ]
        body = _join([name, (_SEQUENCE, _join(told))])
        return False, _element(_SEQUENCE, _join([head, (kind, body), *controls]))

    def _ranged(self, name: bytes, values: list[bytes], parts: dict[bytes, int]) -> Iterator[tuple[bytes, list[bytes]]]:
        first = parts.get(name.lower())
        if first is None:
            if len(values) <= self.most:
                yield name, values
                return
            yield name, []
        elif self.fault is Fault.FORGOTTEN:
            return
        elif self.fault is Fault.AGAIN:
            first = 0
        elif self.fault is Fault.EMPTY:
            yield name + b";range=%d-%d" % (first, first), []
            return
        first = first or 0
        some = values[first : first + self.most]
        last = b"*" if first + self.most >= len(values) else b"%d" % (first + self.most - 1)
        yield name + b";range=%d-%b" % (first, last), some


def _read(stream: socket.socket) -> bytes | None:
    """Return the next message; None: there is none."""
    head = _take(stream, 2)
    if len(head) == 2 and head[1] & 0x80:
        head += _take(stream, head[1] & 0x7F)
    if len(head) < 2:
        return None
    size, _ = _size(head)
    return head + _take(stream, size)


def _take(stream: socket.socket, size: int) -> bytes:
    """Return so many bytes, fewer at the end."""
    held = b""
    while len(held) < size and (more := stream.recv(size - len(held))):
        held += more
    return held


def _size(held: bytes) -> tuple[int, int]:
    """Return the length of an element's content, and where that begins."""
    if held[1] & 0x80:
        start = 2 + (held[1] & 0x7F)
        return int.from_bytes(held[2:start], "big"), start
    return held[1], 2


def _parts(content: bytes) -> list[tuple[int, bytes]]:
    """Return elements that follow each other, each with its tag (X.690)."""
    found = []
    while content:
        size, start = _size(content)
        found.append((content[0], content[start : start + size]))
        content = content[start + size :]
    return found


def _join(elements: list[tuple[int, bytes]]) -> bytes:
    return b"".join(_element(tag, content) for tag, content in elements)


def _element(tag: int, content: bytes) -> bytes:
    if len(content) < 0x80:
        return bytes([tag, len(content)]) + content
    return bytes([tag, 0x84]) + len(content).to_bytes(4, "big") + content
