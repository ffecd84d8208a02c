"""What a node counts of teams that follow groups, for its metrics."""

from collections import Counter

from attrs import define, field

from node.auth.told import Unread


@define(eq=False)
class TeamCounts:
    """Counted since the node's start. `service`: `ldap` or `oidc`."""

    service: str
    joined: int = field(default=0, init=False)
    """Memberships that began because of a group."""
    left: int = field(default=0, init=False)
    """Memberships that ended because of a group, or because no login confirmed them."""
    rounds: int = field(default=0, init=False)
    """Times that some teams were synchronised with a directory."""
    unread: Counter[Unread] = field(factory=Counter, init=False)
    """Teams that could not be, by the reason; of an identity provider, logins that decided about no team."""
