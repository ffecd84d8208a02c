"""Whether teams follow groups: what the keys say, and what cannot be used or does nothing."""

from typing import Any

import pytest

from tests.config.test_ldap import GOOD as LDAP
from tests.config.test_oidc import GOOD as OIDC
from tests.config.test_oidc import PROVIDER
from tests.configurations import only_error, settings

CLAIM: dict[str, Any] = {"KEYCLOAK_LOGIN_CONFIG": {**PROVIDER, "PREFERRED_GROUP_CLAIM_NAME": "groups"}}


def test_quay_s_keys() -> None:
    """They say whether teams follow groups, who may say which, and how old a directory's answer may be; all is off without them."""
    made = settings(**LDAP, FEATURE_TEAM_SYNCING=True, LDAP_MEMBEROF_ATTR="isMemberOf")
    assert (made.team_syncing, made.admins_sync_teams, made.team_resync) == (True, False, 1800.0)
    assert made.ldap is not None
    assert (made.ldap.memberof_attribute, made.ldap.nested_groups, made.team_hold) == ("isMemberOf", False, 21600.0)
    more = settings(
        **{**OIDC, **CLAIM},
        FEATURE_TEAM_SYNCING=True,
        FEATURE_NONSUPERUSER_TEAM_SYNCING_SETUP=True,
        TEAM_RESYNC_STALE_TIME="2h",
    )
    assert (more.admins_sync_teams, more.team_resync) == (True, 7200.0)
    assert more.oidc is not None
    assert (more.oidc.group_claim, more.oidc.silence_is_none) == ("groups", False)
    assert not [line for line in (*made.warnings, *more.warnings) if "TEAM" in line]
    assert settings(**LDAP).team_syncing is False
    own = settings(**LDAP, FEATURE_TEAM_SYNCING=True, LDAP_NESTED_GROUPS=True, TEAM_RESYNC_HOLD_TIME="0s")
    assert own.ldap is not None
    assert (own.ldap.nested_groups, own.team_hold) == (True, 0.0)


def test_how_long_a_login_is_believed() -> None:
    """For ever without TEAM_LOGIN_STALE_TIME; where a directory is asked that does nothing, which is said."""
    assert settings(**{**OIDC, **CLAIM}, FEATURE_TEAM_SYNCING=True).team_login is None
    made = settings(**{**OIDC, **CLAIM}, FEATURE_TEAM_SYNCING=True, TEAM_LOGIN_STALE_TIME="30d")
    assert made.team_login == 30 * 86400.0
    asked = settings(**LDAP, FEATURE_TEAM_SYNCING=True, TEAM_LOGIN_STALE_TIME="30d")
    assert [line for line in asked.warnings if "TEAM_LOGIN_STALE_TIME does nothing" in line]


def test_a_provider_s_claim() -> None:
    """Teams that follow a provider's groups need to know which claim has them."""
    told = only_error(**OIDC, FEATURE_TEAM_SYNCING=True)
    assert told.startswith("KEYCLOAK_LOGIN_CONFIG.PREFERRED_GROUP_CLAIM_NAME: found nothing")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("FEATURE_TEAM_SYNCING", "yes"),
        ("FEATURE_NONSUPERUSER_TEAM_SYNCING_SETUP", 1),
        ("TEAM_RESYNC_STALE_TIME", "30 minutes"),
        ("TEAM_RESYNC_STALE_TIME", "30s"),
        ("TEAM_RESYNC_STALE_TIME", "2d"),
        ("TEAM_RESYNC_HOLD_TIME", "8d"),
        ("TEAM_LOGIN_STALE_TIME", "59m"),
        ("LDAP_NESTED_GROUPS", "deep"),
        ("LDAP_MEMBEROF_ATTR", "member)(x"),
    ],
)
def test_what_cannot_be_used(key: str, value: object) -> None:
    """Each is an error that names the key."""
    assert only_error(**{**LDAP, "FEATURE_TEAM_SYNCING": True, key: value}).startswith(f"{key}: ")


def test_groups_in_groups_as_for_quay() -> None:
    """Who had Active Directory follow them is told which key does that here."""
    told = only_error(**LDAP, FEATURE_TEAM_SYNCING=True, LDAP_MEMBEROF_ATTR="memberOf:1.2.840.113556.1.4.1941:")
    assert told.endswith("write memberOf, and LDAP_NESTED_GROUPS: true for groups in groups")


def test_what_does_nothing() -> None:
    """What counts only with FEATURE_TEAM_SYNCING is named without it, and so is that where nobody has groups."""
    made = settings(**{**OIDC, **CLAIM}, TEAM_RESYNC_STALE_TIME="1h")
    assert [line for line in made.warnings if "TEAM_RESYNC_STALE_TIME, PREFERRED_GROUP_CLAIM_NAME" in line]
    assert [
        line for line in settings(FEATURE_TEAM_SYNCING=True).warnings if "FEATURE_TEAM_SYNCING does nothing" in line
    ]
