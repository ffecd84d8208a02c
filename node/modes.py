"""Read-only and maintenance modes: what a node refuses to change while it goes on serving, copying and watching.

Source: Quay's REGISTRY_STATE and DISABLE_PUSHES. As there the answer is 405: no client tries such a push again by itself.
"""

from enum import Enum

from attrs import evolve

from node.config.settings import Settings
from node.errors import UNSUPPORTED, RegistryError

NORMAL = "normal"
READ_ONLY = "readonly"


class Change(Enum):
    """What a request would do."""

    PUSH = "push"
    """Bring blobs, manifests or tags."""
    ADMINISTER = "administer"
    """Everything else that changes what the registry holds: deletes, restores, settings of namespaces, accounts."""


def refusal(settings: Settings, change: Change) -> str | None:
    """Return why a change is refused now, None if it is not. Pure."""
    if settings.registry_state == READ_ONLY:
        return "the registry is read-only for the time being (REGISTRY_STATE)"
    if settings.disable_pushes and change is Change.PUSH:
        return "the registry takes no pushes for the time being (DISABLE_PUSHES)"
    return None


def check_change(settings: Settings, change: Change) -> None:
    """Raise RegistryError (405, UNSUPPORTED) if a change is refused now. Clients show its message."""
    reason = refusal(settings, change)
    if reason is not None:
        raise RegistryError(evolve(UNSUPPORTED, message=reason), {"reason": reason})
