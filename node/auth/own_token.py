"""The registry's own way in: whoever has its configuration and database signs registry tokens for one repository.

For commands that ask nodes over HTTP as a client does, and must not need anybody's password for it.
"""

import time
from collections.abc import AsyncGenerator

import httpx
import trio

from node.auth.keyring import Keyring
from node.auth.model import Action, Grant, Identity
from node.auth.sealing import Sealer
from node.auth.tokens import Tokens
from node.config.settings import Settings
from node.records.postgres import Database
from node.records.rights import read_changes
from replication.ports import LedgerUnavailable

_LIFETIME = 300.0


class OwnToken(httpx.Auth):
    """Shows a token that pulls from and pushes to one repository and does nothing else; it lives for minutes and is renewed.

    A request raises LedgerUnavailable before there is a first token, and BadToken where no key signs.
    """

    def __init__(self, database: Database, settings: Settings, repository: str) -> None:
        """Sign with the keys of the registry that has these settings and has accounts; they are read when first needed."""
        assert settings.secret_key is not None  # the configuration demands it where there are accounts
        longest = max(settings.token_lifetime, settings.refresh_token_lifetime)
        self._database, self._repository = database, repository
        self._keyring = Keyring(database, Sealer(settings.secret_key), longest)
        self._tokens = Tokens(self._keyring, settings.server_hostname, time.time)
        self._token, self._epoch, self._renew_at = "", 0, float("-inf")

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Put the token into a request."""
        if trio.current_time() >= self._renew_at:
            await self._renew()
        request.headers["authorization"] = f"Bearer {self._token}"
        yield request

    async def _renew(self) -> None:
        try:
            await self._keyring.refresh()
            self._epoch = (await read_changes(self._database, None, 0.0)).number
        except LedgerUnavailable:
            # The keys in memory still sign, and what was known last is not known to be wrong.
            if not self._token:
                raise
        grants = {self._repository: Grant(frozenset({Action.PULL, Action.PUSH}))}
        self._token = self._tokens.issue(Identity(), grants, self._epoch, _LIFETIME, catalog=False)
        self._renew_at = trio.current_time() + _LIFETIME / 2
