"""Passwords of people: hashed slowly, in a thread, a few at a time, each with a deadline.

argon2id with 19 MiB, as OWASP's password storage sheet has it; Quay's bcrypt hashes are accepted, and replaced at the next login.
"""

from collections.abc import Callable
from typing import TypeVar

import argon2
import bcrypt
import trio
from argon2.exceptions import InvalidHashError, VerificationError
from attrs import define, field, frozen

from node.config.values import Unfit
from node.errors import TOOMANYREQUESTS, RegistryError

T = TypeVar("T")

LEAST, MOST = 8, 256
"""Characters of a password."""

_AT_ONCE = 2
"""Times 19 MiB: a node's memory is bounded."""
_WAITING = 32
_SECONDS = 10.0
_BCRYPT_BYTES = 72
"""What bcrypt takes in; Quay's version left the rest out silently."""

_HASHER = argon2.PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
_DUMMY = "$argon2id$v=19$m=19456,t=2,p=1$MDEyMzQ1Njc4OWFiY2RlZg$WX0yHh4Pz4m5m7m0VtV0YBxVhhN1P1l1b2q7e0x0Q3E"
"""Nobody's. Checking against it takes as long as against anybody's."""


@frozen
class Verdict:
    """Whether a password is right, and what to keep of it instead, where it was hashed by an older rule."""

    right: bool
    better: str | None = field(default=None, repr=False)


def check_password(password: str) -> str:
    """Return a password that may be set. Raises Unfit."""
    if not LEAST <= len(password) <= MOST:
        raise Unfit(f"write {LEAST} to {MOST} characters")
    if not password.isprintable():
        raise Unfit("write characters that can be typed")
    return password


def verify_now(password: str, stored: str | None) -> Verdict:
    """Compare a password with a hash; slow. With None, or what is no hash of a password, it takes as long and is never right."""
    if stored is not None and stored.startswith(("$2a$", "$2b$", "$2y$")):
        right = bcrypt.checkpw(password.encode()[:_BCRYPT_BYTES], stored.encode())
        return Verdict(right, _HASHER.hash(password) if right else None)
    known = stored is not None and stored.startswith("$argon2")
    try:
        _HASHER.verify(stored if known and stored is not None else _DUMMY, password)
    except (VerificationError, InvalidHashError):
        return Verdict(False)
    if not known or stored is None:
        return Verdict(False)
    return Verdict(True, _HASHER.hash(password) if _HASHER.check_needs_rehash(stored) else None)


def hash_now(password: str) -> str:
    """Return a password's hash; slow."""
    return _HASHER.hash(password)


@define(eq=False)
class Passwords:
    """Hashes beside the event loop. One for a node: it bounds the memory that hashing takes."""

    _limiter: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(_AT_ONCE))

    async def verify(self, password: str, stored: str | None) -> Verdict:
        """Compare a password with a hash. Raises RegistryError (429) when too many are waiting, or it takes too long."""
        return await self._beside(verify_now, password[:MOST], stored)

    async def hash(self, password: str) -> str:
        """Return a password's hash. Raises RegistryError (429) as `verify`."""
        return await self._beside(hash_now, password)

    async def _beside(self, work: Callable[..., T], *given: str | None) -> T:
        if self._limiter.statistics().tasks_waiting < _WAITING:
            with trio.move_on_after(_SECONDS):
                # A thread that nobody waits for any more keeps its place until it has ended.
                return await trio.to_thread.run_sync(work, *given, limiter=self._limiter, abandon_on_cancel=True)
        raise RegistryError(TOOMANYREQUESTS, {"reason": "too many logins at once"}, retry_after=2)
