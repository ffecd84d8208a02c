"""Buffers for the pieces of one stream, used again as soon as nobody looks at what is in them.

A fresh MiB costs as much of the processor as hashing it: the kernel hands it out in 256 empty pages, each with a fault of its own.
"""

from replication.model import PIECE

_MOST = 4
"""What a stream has at once: a piece that is received, one that is handed over, and one or two with who sends them."""


class PieceBuffers:
    """Buffers of up to one piece each. Whoever keeps what it was given, or a slice of it, keeps it unchanged."""

    def __init__(self, size: int) -> None:
        """Make buffers of `size` bytes, at most a piece."""
        self._size = min(size, PIECE)
        self._buffers: list[bytearray] = []

    def take(self, length: int) -> memoryview:
        """Return `length` bytes to write into, with anything in them; at most the buffers' size."""
        for buffer in self._buffers:
            if _unseen(buffer):
                return memoryview(buffer)[:length]
        buffer = bytearray(self._size)
        if len(self._buffers) < _MOST:
            self._buffers.append(buffer)
        return memoryview(buffer)[:length]


def _unseen(buffer: bytearray) -> bool:
    """Whether no view of the buffer is left anywhere: it cannot be resized while there is one. A byte less moves nothing."""
    try:
        last = buffer.pop()
    except BufferError:
        return False
    buffer.append(last)
    return True
