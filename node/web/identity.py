"""Who sent the request of the API that is being answered: proven once per request, whoever asks for it."""

from typing import cast

import quart

from node.auth.model import Action, Identity
from node.registry import Registry
from node.web.access import client_address
from node.web.asgi import Scope


async def identity(registry: Registry) -> Identity:
    """Return who sent the current request. Raises RegistryError (401, 429) for credentials that are not good."""
    known = quart.g.get("identity")
    if not isinstance(known, Identity):
        given, client = quart.request.headers.get("authorization"), client_address(cast("Scope", quart.request.scope))
        known = quart.g.identity = await registry.access.identify(given, client)
    return known


async def require(registry: Registry, action: Action, repository: str) -> Identity:
    """Return who sent the current request, who may do this to the repository. Raises RegistryError (401, 403, 429)."""
    who = await identity(registry)
    await registry.access.require(who, action, repository)
    return who


async def require_namespace(registry: Registry, namespace: str) -> Identity:
    """Return who sent the current request, who owns or administers the namespace. Raises RegistryError (401, 403, 429)."""
    who = await identity(registry)
    await registry.access.require_namespace(who, namespace)
    return who


async def require_user(registry: Registry) -> Identity:
    """Return who sent the current request, who is a user. Raises RegistryError (401, 403, 429)."""
    who = await identity(registry)
    registry.access.require_user(who)
    return who


async def require_superuser(registry: Registry) -> Identity:
    """Return who sent the current request, who is a superuser. Raises RegistryError (401, 403, 429)."""
    who = await identity(registry)
    registry.access.require_superuser(who)
    return who
