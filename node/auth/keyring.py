"""The signing keys of the registry in a node's memory: read now and then, made when needed, used without a look at the database."""

from collections.abc import Callable, Mapping, Sequence
from secrets import token_hex

import structlog
import trio
from attrs import define, field
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from node.auth.rotation import next_key
from node.auth.sealing import Sealed, Sealer
from node.records.postgres import Database
from node.records.signing_keys import KeyRow, add_key, drop_keys, read_keys
from replication.ports import LedgerUnavailable

_log = structlog.get_logger("antipode.tokens")

_AGAIN = 5.0
"""Seconds between two looks at the database for keys that tokens name and nobody knows: anybody can make those up."""


@define(eq=False)
class Keyring:
    """The keys of a registry. `longest`: the longest lifetime of a token, in seconds."""

    _database: Database = field(alias="database")
    _sealer: Sealer = field(alias="sealer")
    _longest: float = field(alias="longest")
    _clock: Callable[[], float] = field(alias="clock", default=trio.current_time)
    _public: Mapping[str, tuple[Ed25519PublicKey, float]] = field(factory=dict, init=False)
    _signing: tuple[tuple[str, Ed25519PrivateKey, float, float], ...] = field(default=(), init=False)
    _looked: float = field(default=float("-inf"), init=False)

    async def refresh(self) -> None:
        """Read the keys; make one where none signs or the last one's end is near. Raises DatabaseUnavailable."""
        rows = await read_keys(self._database)
        ours = self._openable(rows)
        span = next_key([row for row in rows if row.id in ours], self._longest)
        if span is not None:
            await self._make(span.signs_from, span.signs_until, span.verifies_until)
            rows = await read_keys(self._database)
            ours = self._openable(rows)
        self._take(rows, ours)

    async def rotate(self, *, revoke: bool) -> str:
        """Make a new key that signs in two minutes, or at once where all others are to be void; return its id."""
        span = next_key((), self._longest, at_once=not revoke)
        assert span is not None
        made = await self._make(span.signs_from, span.signs_until, span.verifies_until)
        if revoke:
            await drop_keys(self._database, all_but=made)
        await self.refresh()
        return made

    def signing(self) -> tuple[str, Ed25519PrivateKey] | None:
        """Return the id and the key that sign now; None if this node cannot read any."""
        now = self._clock()
        usable = [(begins, id_, key) for id_, key, begins, ends in self._signing if begins <= now < ends]
        if not usable:
            return None
        _, id_, key = max(usable, key=lambda line: (line[0], line[1]))
        return id_, key

    def has(self, key_id: str) -> bool:
        """Tell whether what this key signed still counts. From memory."""
        known = self._public.get(key_id)
        return known is not None and self._clock() < known[1]

    async def public(self, key_id: str) -> Ed25519PublicKey | None:
        """Return the public key of this id, from memory; one that nobody knows is looked for now and then. Never raises."""
        now = self._clock()
        known = self._public.get(key_id)
        if known is None and now - self._looked >= _AGAIN:
            self._looked = now
            try:
                await self.refresh()
            except LedgerUnavailable as error:
                _log.info("unknown signing key, and the database is away", reason=str(error))
            known = self._public.get(key_id)
        return known[0] if known is not None and now < known[1] else None

    async def _make(self, signs_from: float, signs_until: float, verifies_until: float) -> str:
        key, key_id = Ed25519PrivateKey.generate(), token_hex(8)
        public, private = key.public_key().public_bytes_raw(), key.private_bytes_raw()
        sealed = self._sealer.seal(private, key_id)
        await add_key(self._database, KeyRow(key_id, public, sealed, signs_from, signs_until, verifies_until))
        _log.info("new signing key", key=key_id, signs_in=round(signs_from))
        return key_id

    def _openable(self, rows: Sequence[KeyRow]) -> Mapping[str, Ed25519PrivateKey]:
        opened = {}
        for row in rows:
            try:
                opened[row.id] = Ed25519PrivateKey.from_private_bytes(self._sealer.unseal(row.private, row.id))
            except Sealed as error:
                _log.warning("a signing key cannot be used here, only verified with", key=row.id, reason=str(error))
        return opened

    def _take(self, rows: Sequence[KeyRow], ours: Mapping[str, Ed25519PrivateKey]) -> None:
        now = self._clock()
        self._public = {
            row.id: (Ed25519PublicKey.from_public_bytes(row.public), now + row.verifies_until) for row in rows
        }
        self._signing = tuple(
            (row.id, ours[row.id], now + row.signs_from, now + row.signs_until) for row in rows if row.id in ours
        )
