"""Which cipher suites of TLS 1.3 a context has, and in which order: what Python's `ssl` cannot set before 3.15.

OpenSSL's own function for it is called through ctypes, on the pointer that a context of CPython begins with.
"""

import _ssl
import ctypes
import ssl
import sys
from collections.abc import Sequence
from functools import cache

_FAST = "TLS_AES_128_GCM_SHA256"
_KNOWN = ((3, 11), (3, 12), (3, 13))
"""Versions of CPython whose contexts begin with OpenSSL's, then the protocols of ALPN and their length."""
_HEAD = object.__basicsize__
_WORD = ctypes.sizeof(ctypes.c_void_p)


class CannotChoose(Exception):
    """These suites were not taken, and why."""


def suites_of(context: ssl.SSLContext) -> list[str]:
    """Return the names of a context's suites of TLS 1.3, the preferred one first."""
    return [cipher["name"] for cipher in context.get_ciphers() if cipher["protocol"] == "TLSv1.3"]


def choose_suites(context: ssl.SSLContext, names: Sequence[str]) -> None:
    """Give a context these suites of TLS 1.3, in this order. Raises CannotChoose; the context is then not to be used."""
    library = _library()
    if library is None:
        raise CannotChoose("this Python does not let OpenSSL be reached")
    library.SSL_CTX_set_ciphersuites(
        ctypes.c_void_p.from_address(id(context) + _HEAD), ":".join(names).encode("ascii", "replace")
    )
    # Before Python reads it as another call's error.
    library.ERR_clear_error()
    # OpenSSL passes over names that it does not know.
    if unknown := [name for name in names if name not in suites_of(context)]:
        raise CannotChoose(f"OpenSSL does not know {', '.join(unknown)}")


def prefer_fast(context: ssl.SSLContext) -> None:
    """Put AES-128-GCM before a context's other suites, as Go's clients do; leave all as it is where that cannot be done.

    A server that takes its clients' order would else take OpenSSL's, AES-256-GCM: 0.05 s of the processor more per GiB on both
    sides. A suite that the machine's configuration of OpenSSL does not allow stays away.
    """
    names = suites_of(context)
    if _FAST in names and _library() is not None:
        choose_suites(context, sorted(names, key=lambda name: name != _FAST))


@cache
def _library() -> ctypes.CDLL | None:
    """Return the OpenSSL that `ssl` itself works with, None where contexts may look otherwise than this module believes."""
    path = getattr(_ssl, "__file__", None)
    if path is None or sys.implementation.name != "cpython" or sys.version_info[:2] not in _KNOWN:
        return None
    probe = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    probe.set_alpn_protocols(["antipode"])
    if ctypes.c_uint.from_address(id(probe) + _HEAD + 2 * _WORD).value != len("antipode") + 1:
        return None
    library = ctypes.CDLL(path)
    try:
        library.SSL_CTX_set_ciphersuites.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    except AttributeError:
        return None
    return library
