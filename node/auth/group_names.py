"""Which group a team may follow: it is looked for where it can be, so that a slip is told at once and not by an empty team."""

from node.auth.directory import DirectoryUnavailable
from node.auth.dn import below, parse
from node.config.settings import LdapSettings, Settings
from node.config.values import Unfit

__all__ = ["DirectoryUnavailable", "check_group", "service_of"]

_MOST = 255


def service_of(settings: Settings) -> str | None:
    """Return who says who is in a group, `ldap` or `oidc`; None: teams follow no groups here."""
    if not settings.team_syncing:
        return None
    return "ldap" if settings.ldap is not None else "oidc" if settings.oidc is not None else None


async def check_group(settings: Settings, group: str, bound: str | None = None) -> str:
    """Return a group's name as it is kept: one of a directory relative to LDAP_BASE_DN.

    `bound`: the group that the team follows already. It is not looked for: it may be gone, and its people are to go, too. An
    identity provider's groups cannot be looked for. Raises Unfit, DirectoryUnavailable.
    """
    name = group.strip()
    if not name or len(name) > _MOST or not name.isprintable():
        raise Unfit(f"write the name of a group, at most {_MOST} characters")
    return name if settings.ldap is None else await _check_directory(settings.ldap, name, bound)


async def _check_directory(ldap: LdapSettings, name: str, bound: str | None) -> str:
    # Its library is loaded only where there is a directory: it is large.
    from node.auth.ldap_groups import LdapGroups

    relative = below(parse(name), parse(ldap.base_dn))
    kept = name if relative is None else ",".join(relative)
    if bound is not None and parse(kept) == parse(bound):
        return bound
    if not await LdapGroups(ldap).has_group(kept):
        raise Unfit(f"there is no {kept} below {ldap.base_dn}: write the group's name relative to that")
    return kept
