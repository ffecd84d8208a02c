"""How the parts of an upload are numbered and how large they are, within the 10 000 numbers that a store takes. Pure."""

OFTEN_TAKEN_OVER = 48
"""The epoch from which on an upload counts as one that wanders, as behind a balancer that deals requests out in turn."""

_GROW_FROM, _GROW_EVERY = 5000, 1000


def record_every(epoch: int) -> int:
    """Return how many parts the owner of `epoch` may write between two records; whoever takes over from it skips that many.

    A store takes 10 000 part numbers. Few owners write long requests, many owners write short ones: an upload that wanders
    leaves small gaps, so that thousands of requests in turn on two nodes do not use the numbers up.
    """
    return 32 if epoch < OFTEN_TAKEN_OVER else 1


def part_size_at(number: int, part_size: int) -> int:
    """Return the size in bytes of the part with this number: constant to part 5000, then doubling every 1000."""
    if number <= _GROW_FROM:
        return part_size
    return part_size << (1 + (number - _GROW_FROM - 1) // _GROW_EVERY)


def memory_claim(number: int, part_size: int, in_flight: int) -> int:
    """Return the most bytes that a writer which begins with part `number` holds.

    That is its parts in flight, one waiting for its turn, one kept back and one filling. Parts that grow while it writes are
    made to fit: see `UploadWriter`.
    """
    return (in_flight + 3) * part_size_at(number, part_size)
