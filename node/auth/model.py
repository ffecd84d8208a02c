"""Who asks, what they may ask for, and the one decision about it. Pure.

A registry token carries the rights that its holder had when it was issued; everybody else's rights are decided from a `Standing`,
the facts that the database has about an account and a repository (Quay: repository permissions, teams, robots).
"""

from collections.abc import Mapping
from enum import Enum, IntEnum
from math import inf

from attrs import field, frozen

from node.names import is_name, namespace_of


class Action(Enum):
    """What can be done to a repository. The values are the actions of token scopes, as docker's clients write them."""

    PULL = "pull"
    PUSH = "push"
    DELETE = "delete"
    ADMIN = "*"
    """Change its permissions and visibility, or delete it whole."""


class Role(IntEnum):
    """A permission on a repository. Each includes those before it."""

    NONE = 0
    READ = 1
    WRITE = 2
    ADMIN = 3


class TeamRole(IntEnum):
    """What the members of a team may do in their whole organisation. Each includes those before it."""

    NONE = 0
    MEMBER = 1
    """Nothing but what the team has been given."""
    CREATOR = 2
    """Make repositories, by pushing to them."""
    ADMIN = 3
    """Everything: as the organisation itself."""


class Kind(Enum):
    """What an account is."""

    USER = "user"
    ORGANIZATION = "organization"
    ROBOT = "robot"


ROLE_ACTIONS: Mapping[Role, frozenset[Action]] = {
    Role.NONE: frozenset(),
    Role.READ: frozenset({Action.PULL}),
    Role.WRITE: frozenset({Action.PULL, Action.PUSH, Action.DELETE}),
    Role.ADMIN: frozenset(Action),
}
"""What each role allows."""


@frozen
class Grant:
    """What a registry token allows on one repository. `creates`: the repository did not exist, and pushing makes it."""

    actions: frozenset[Action] = frozenset()
    creates: bool = False


@frozen
class Identity:
    """Who sent a request, once that is proven.

    `grants` is what a registry token allows, by repository, and then all that it allows; None: the account's own rights count,
    which are looked up.
    """

    name: str = ""
    """The account's: `alice`, `org`, `org+robot`; empty for nobody in particular."""
    kind: Kind | None = None
    """None: nobody in particular."""
    superuser: bool = False
    everything: bool = False
    """The registry is open (FEATURE_OPEN_REGISTRY), and whoever asks may do anything."""
    grants: Mapping[str, Grant] | None = None
    catalog: bool = False
    """Whether such a token may list the repositories that its holder may pull."""
    epoch: int = 0
    """How far the access log was when `grants` were decided, or the account was proven."""
    until: float = field(default=inf, eq=False)
    """POSIX seconds: when what proved it ends."""

    @property
    def anonymous(self) -> bool:
        """Whether nobody in particular asks."""
        return self.kind is None


ANONYMOUS = Identity()
ANYBODY = Identity(everything=True, superuser=True)
"""Whoever asks an open registry."""


@frozen
class Standing:
    """What the database has about an account and a repository, which need not exist."""

    exists: bool = False
    public: bool = False
    owner: Kind | None = None
    """What the account is that has the namespace's name; None: there is none."""
    role: Role = Role.NONE
    """The best of the account's own permission and its teams'."""
    team_role: TeamRole = TeamRole.NONE
    """The best of its teams in the namespace's organisation."""
    epoch: int = 0
    """How far the access log was when this was read."""


def owns(identity: Identity, namespace: str, standing: Standing, *, full_access: bool) -> bool:
    """Tell whether somebody may do anything in a namespace: its user, its organisation's admins, superusers where they may all."""
    if identity.everything or (identity.superuser and full_access):
        return True
    if identity.kind is Kind.USER and identity.name == namespace:
        return True
    return standing.owner is Kind.ORGANIZATION and standing.team_role is TeamRole.ADMIN


def actions_of(identity: Identity, repository: str, standing: Standing, *, library: str, full_access: bool) -> Grant:
    """Return what somebody may do to a repository by their own rights. `library`: LIBRARY_NAMESPACE.

    Where the repository does not exist, those who may make it may push to it.
    """
    if not is_name(repository):
        return Grant()
    namespace = namespace_of(repository, library)
    if owns(identity, namespace, standing, full_access=full_access):
        return Grant(frozenset(Action), creates=not standing.exists)
    if not standing.exists:
        makes = standing.owner is Kind.ORGANIZATION and standing.team_role >= TeamRole.CREATOR
        return Grant(ROLE_ACTIONS[Role.WRITE], creates=True) if makes else Grant()
    public = ROLE_ACTIONS[Role.READ] if standing.public else frozenset()
    return Grant(ROLE_ACTIONS[standing.role] | public)
