"""Scopes of registry tokens: read as clients write them, and written as challenges say them. Pure.

Source: Docker Registry v2 token scope documentation (`type[(class)]:name:action,action`); clients repeat the parameter, join scopes
with spaces, or both.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from attrs import frozen

from node.auth.model import Action, Grant
from node.names import is_name

REPOSITORY = "repository"
REGISTRY = "registry"
MOST = 64
"""Scopes of one token; containerd's grow with every repository that one command touches."""

_SEPARATORS = re.compile(r"[ +]+")  # a plus is a space that a query's reader left as it is
_ACTIONS = {action.value: action for action in Action}


@frozen
class Need:
    """What a request needs to be allowed: actions on a repository, or, without one, the list of all repositories."""

    repository: str
    actions: tuple[Action, ...] = ()

    @property
    def scope(self) -> str:
        """Return it as a challenge says it."""
        if not self.repository:
            return f"{REGISTRY}:catalog:*"
        return f"{REPOSITORY}:{self.repository}:{','.join(action.value for action in self.actions)}"


CATALOG = Need("")


@frozen
class Asked:
    """What a client asks a token for: actions per repository, and whether it wants to list the registry's repositories."""

    repositories: Mapping[str, frozenset[Action]]
    catalog: bool = False


def read_scopes(values: Iterable[str]) -> Asked:
    """Return what scopes ask for. What nobody here knows is left out: a token with less is the answer, not an error.

    `*` asks for every action.
    """
    repositories: dict[str, frozenset[Action]] = {}
    catalog = False
    scopes = [scope for value in values for scope in _SEPARATORS.split(value) if scope]
    for scope in scopes[:MOST]:
        kind, _, rest = scope.partition(":")
        name, _, actions = rest.rpartition(":")
        if kind.partition("(")[0] == REGISTRY:
            catalog = catalog or name == "catalog"
        elif kind.partition("(")[0] == REPOSITORY and is_name(name):
            words = actions.split(",")
            known = (
                frozenset(Action) if "*" in words else frozenset(_ACTIONS[word] for word in words if word in _ACTIONS)
            )
            repositories[name] = repositories.get(name, frozenset()) | known
    return Asked(repositories, catalog)


def narrow(asked: frozenset[Action], grant: Grant) -> Grant:
    """Return what of a grant was asked for."""
    return Grant(asked & grant.actions, grant.creates and Action.PUSH in asked & grant.actions)


def write_access(grants: Mapping[str, Grant], *, catalog: bool) -> Sequence[Mapping[str, object]]:
    """Return the `access` claim: one entry per repository that was asked for, without actions where none is allowed."""
    entries: list[Mapping[str, object]] = [
        {
            "type": REPOSITORY,
            "name": name,
            "actions": words_of(grant.actions),
            **({"new": True} if grant.creates else {}),
        }
        for name, grant in grants.items()
    ]
    return [*entries, {"type": REGISTRY, "name": "catalog", "actions": ["*"]}] if catalog else entries


def read_access(access: Sequence[object]) -> tuple[Mapping[str, Grant], bool]:
    """Return what the `access` claim of a token of ours grants, and whether it may list repositories."""
    grants: dict[str, Grant] = {}
    catalog = False
    for entry in access:
        match entry:
            case {"type": "registry", "name": "catalog"}:
                catalog = True
            case {"type": "repository", "name": str(name), "actions": list(words), **more}:
                actions = frozenset(_ACTIONS[word] for word in words if word in _ACTIONS)
                grants[name] = Grant(actions, more.get("new") is True)
    return grants, catalog


def words_of(actions: Iterable[Action]) -> list[str]:
    """Return actions as scopes write them, in one order."""
    return [action.value for action in Action if action in set(actions)]
