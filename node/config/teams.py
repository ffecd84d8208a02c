"""Checks that teams can be synchronised where FEATURE_TEAM_SYNCING says so: somebody must say who is in a group."""

from collections.abc import Mapping

from node.config.oidc import ENDING
from node.config.settings import OidcSettings
from node.config.values import Findings

_MORE = (
    "FEATURE_NONSUPERUSER_TEAM_SYNCING_SETUP",
    "TEAM_RESYNC_STALE_TIME",
    "TEAM_RESYNC_HOLD_TIME",
    "TEAM_LOGIN_STALE_TIME",
)


def check_syncing(document: Mapping[str, object], oidc: OidcSettings | None, findings: Findings) -> None:
    """Find what keeps teams from being synchronised, and name what does nothing because they are not."""
    kind = document.get("AUTHENTICATION_TYPE")
    if document.get("FEATURE_TEAM_SYNCING") is not True:
        given = [key for key in _MORE if document.get(key) is not None]
        if oidc is not None and oidc.group_claim is not None:
            given.append("PREFERRED_GROUP_CLAIM_NAME")
        if given:
            findings.warn(f"ignored, as FEATURE_TEAM_SYNCING is not true: {', '.join(given)}")
    elif kind not in ("LDAP", "OIDC"):
        findings.warn("FEATURE_TEAM_SYNCING does nothing, as AUTHENTICATION_TYPE is neither LDAP nor OIDC")
    elif kind == "LDAP" and document.get("TEAM_LOGIN_STALE_TIME") is not None:
        findings.warn("TEAM_LOGIN_STALE_TIME does nothing with LDAP: the directory itself is asked who is in a group")
    elif oidc is not None and oidc.group_claim is None:
        findings.wrong(
            f"{oidc.name.upper()}{ENDING}.PREFERRED_GROUP_CLAIM_NAME",
            "nothing",
            "FEATURE_TEAM_SYNCING needs it: write the claim that has somebody's groups, such as groups",
        )
