"""Has the C library give large buffers back to the system as soon as they are free, so that memory follows what is in use."""

import ctypes

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of glibc's malloc.h
_LARGE = 256 * 1024


def return_large_buffers() -> bool:
    """Map buffers from 256 KiB on by themselves, whatever was freed before; False where the C library is not glibc.

    By itself glibc raises that limit to the size of what it sees freed, and part buffers of 5 MiB then stay in fragmented heaps.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGE))
