"""The keys that pieces are verified by (`replication/macs.py`) in a node's memory: read now and then, made where there is none."""

from secrets import token_bytes

import structlog
import trio
from attrs import define, field

from node.auth.sealing import Sealed, keep_secret, open_secret
from node.records.mac_keys import MacKeyRow, add_mac_key, read_mac_keys
from node.records.postgres import Database
from replication.macs import KEY_ID, MacKey, MacKeys
from replication.ports import LedgerUnavailable

_log = structlog.get_logger("antipode.macs")

_EVERY = 60.0
"""Seconds after which a node knows a key that another one made. Until then it hashes what that one's MACs would have spared it."""


@define(eq=False)
class MacKeyring:
    """Keeps `keys` as the database has them. One that cannot be opened here is as good as none."""

    _database: Database = field(alias="database")
    _secret_key: str | None = field(alias="secret_key")
    keys: MacKeys = field(factory=MacKeys, init=False)
    _closed: set[bytes] = field(factory=set, init=False)

    async def refresh(self) -> None:
        """Read the keys; make one where this node can use none. Raises DatabaseUnavailable."""
        usable = await self._usable()
        if not usable:
            id_, secret = token_bytes(KEY_ID), token_bytes(32)
            await add_mac_key(self._database, MacKeyRow(id_, keep_secret(secret, self._secret_key, id_.hex())))
            _log.info("new key for MACs of pieces", key=id_.hex())
            # Of two nodes that make one at the same moment both go on with the older one.
            usable = await self._usable()
        self.keys.take(usable)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the keys up to date for ever."""
        task_status.started()
        while True:
            await trio.sleep(_EVERY)
            try:
                await self.refresh()
            except LedgerUnavailable as error:
                _log.info("the keys for MACs cannot be read", reason=str(error))

    async def _usable(self) -> list[MacKey]:
        usable = []
        for row in await read_mac_keys(self._database):
            try:
                usable.append(MacKey(row.id, open_secret(row.secret, self._secret_key, row.id.hex())))
            except Sealed as error:
                if row.id not in self._closed:
                    self._closed.add(row.id)
                    _log.warning("MACs of this key cannot be used here", key=row.id.hex(), reason=str(error))
        return usable
