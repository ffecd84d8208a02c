"""A socket as worker threads write to it: never waiting long, never beyond the connection that it was opened for."""

import os
import resource
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from node.web.adapter import _Beside
from node.web.sink import SocketSink, open_sink


async def test_a_sink_takes_what_fits() -> None:
    """A full socket takes nothing, an emptied one takes more, and all of it arrives in order."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    told: list[int] = []
    with theirs, ours, open_sink(ours, told.append) as sink:
        data = memoryview(bytes(range(256)) * (1 << 14))
        first = sink.send(data)
        assert 0 < first < len(data)
        assert sink.send(data) == 0
        assert not sink.ready()
        assert theirs.recv(first, socket.MSG_WAITALL) == data[:first]
        assert sink.ready()
        second = sink.send(data[first:])
        assert second > 0
        assert theirs.recv(second, socket.MSG_WAITALL) == data[first : first + second]
        sink.sent(first + second)
    assert told == [first + second]


async def test_a_sink_of_a_closed_connection_writes_to_nobody_else() -> None:
    """The number of a socket that is closed under a thread is soon another's, which must get none of the bytes."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    number = ours.fileno()
    with theirs, open_sink(ours, lambda _: None) as sink:
        ours.close()
        other, peer = socket.socketpair()
        with other, peer:
            assert number in (other.fileno(), peer.fileno())
            assert sink.send(memoryview(b"blob")) == 4
            assert theirs.recv(100) == b"blob"
            for end in (other, peer):
                end.setblocking(False)
                try:
                    assert not end.recv(100)
                except BlockingIOError:
                    continue
        theirs.close()
        assert sink.send(memoryview(b"blob")) == 0
        assert not sink.ready()


async def test_without_another_file_the_task_sends_it_all() -> None:
    """A node that can open no more files goes on with the answers that have begun."""
    ours, theirs = socket.socketpair()

    class Carrier:
        def sink(self, sent: Callable[[int], None]) -> AbstractContextManager[SocketSink]:
            return open_sink(ours, sent)

    class Outlet:
        def passed(self, count: int) -> None:
            """Take no notice."""

    carrier: Any = Carrier()
    outlet: Any = Outlet()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ours, theirs:
        free = os.dup(ours.fileno())
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            with _Beside(carrier, outlet) as beside:
                assert beside.sink() is None
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        with _Beside(carrier, outlet) as beside:
            assert beside.sink() is beside.sink() is not None
