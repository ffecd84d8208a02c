"""The gate that every request passes: who asks, and whether they may."""

from attrs import define

from node.auth.model import ANYBODY, Action, Identity
from node.errors import DENIED, RegistryError


@define(eq=False)
class Access:
    """What handlers ask. One per process."""

    async def identify(self, authorization: str | None, client: str) -> Identity:
        """Return who sent a request with this Authorization header from this address.

        Raises RegistryError: UNAUTHORIZED for credentials that are not good, TOOMANYREQUESTS after too many of them.
        """
        del authorization, client  # An open registry asks nobody.
        return ANYBODY

    async def may(self, identity: Identity, action: Action, repository: str) -> bool:
        """Tell whether somebody may do this to a repository, which need not exist. Raises DatabaseUnavailable."""
        del action, repository
        return identity.everything

    async def require(self, identity: Identity, action: Action, repository: str) -> None:
        """Return if somebody may do this to a repository. Raises RegistryError: UNAUTHORIZED for nobody, else DENIED."""
        if not await self.may(identity, action, repository):
            raise RegistryError(DENIED, {"name": repository})

    async def require_namespace(self, identity: Identity, namespace: str) -> None:
        """Return if somebody may do everything in a namespace: its user, its organisation's admins. Raises RegistryError."""
        if not identity.everything:
            raise RegistryError(DENIED, {"namespace": namespace})

    def require_superuser(self, identity: Identity) -> None:
        """Return if somebody is a superuser. Raises RegistryError."""
        if not identity.superuser:
            raise RegistryError(DENIED)
