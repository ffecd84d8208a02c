"""Which identity provider people log in with: what the keys say, and what cannot be used."""

from typing import Any

import pytest

from node.config.report import report
from node.config.settings import OidcSettings
from tests.configurations import ABSENT, errors, only_error, settings

PROVIDER: dict[str, Any] = {
    "OIDC_SERVER": "https://login.example.com/realms/main/",
    "CLIENT_ID": "registry",
    "CLIENT_SECRET": "hunter2",
    "SERVICE_NAME": "Example",
}
GOOD: dict[str, Any] = {"AUTHENTICATION_TYPE": "OIDC", "KEYCLOAK_LOGIN_CONFIG": PROVIDER}


def test_a_provider() -> None:
    """Quay's keys say where the provider is and what the registry is to it; openid is always asked for."""
    made = settings(**GOOD).oidc
    assert made == OidcSettings(
        "keycloak",
        "https://login.example.com/realms/main/",
        "https://login.example.com/realms/main/",
        "registry",
        "hunter2",
        "Example",
    )
    assert "hunter2" not in repr(made)
    more = settings(
        **{
            **GOOD,
            "KEYCLOAK_LOGIN_CONFIG": {
                **PROVIDER,
                "SERVICE_NAME": None,
                "LOGIN_SCOPES": ["email"],
                "OIDC_ISSUER": "https://issuer.example.com",
                "PREFERRED_USERNAME_CLAIM_NAME": "nickname",
                "VERIFIED_EMAIL_CLAIM_NAME": "mail",
                "OIDC_DISABLE_USER_ENDPOINT": True,
            },
        }
    ).oidc
    assert more is not None
    assert (more.scopes, more.issuer, more.service_name) == (
        ("openid", "email"),
        "https://issuer.example.com",
        "KEYCLOAK",
    )
    assert (more.username_claim, more.email_claim, more.user_endpoint) == ("nickname", "mail", False)


def test_a_secret_from_elsewhere() -> None:
    """The client's secret may come from outside of the file."""
    given = {**PROVIDER, "CLIENT_SECRET": {"env": "OIDC_SECRET"}}
    made = settings({"OIDC_SECRET": "s3cr3t"}, **{**GOOD, "KEYCLOAK_LOGIN_CONFIG": given}).oidc
    assert made is not None
    assert made.client_secret == "s3cr3t"


def test_the_report() -> None:
    """`config check` says who proves people, without the secret."""
    told = report(settings(**GOOD))
    assert "proven by Example, https://login.example.com/realms/main/" in told
    assert "hunter2" not in told


def test_what_is_ignored() -> None:
    """Keys of Quay's that do nothing here are named, and so is a provider where people log in otherwise."""
    given = {**PROVIDER, "OIDC_LOGOUT_URL": "https://login.example.com/out", "SERVICE_ICON": "fa-key"}
    made = settings(**{**GOOD, "KEYCLOAK_LOGIN_CONFIG": given})
    assert [line for line in made.warnings if "OIDC_LOGOUT_URL, SERVICE_ICON" in line]
    other = settings(KEYCLOAK_LOGIN_CONFIG=PROVIDER)
    assert other.oidc is None
    assert [line for line in other.warnings if "KEYCLOAK_LOGIN_CONFIG" in line]
    assert [line for line in settings(GITHUB_LOGIN_CONFIG={}).warnings if "not supported" in line]


@pytest.mark.parametrize("key", ["OIDC_SERVER", "CLIENT_ID"])
def test_what_a_provider_needs(key: str) -> None:
    """Each of the two is required, and the error names it."""
    given = {name: value for name, value in PROVIDER.items() if name != key}
    told = only_error(**{**GOOD, "KEYCLOAK_LOGIN_CONFIG": given})
    assert told.startswith(f"KEYCLOAK_LOGIN_CONFIG.{key}: found nothing")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("OIDC_SERVER", "http://login.example.com"),
        ("OIDC_SERVER", "https://user:s3cr3t@login.example.com"),
        ("OIDC_SERVER", "https://login.example.com?a=b"),
        ("OIDC_SERVER", "https://login.example.com:0"),
        ("OIDC_SERVER", "https://[login"),
        ("OIDC_ISSUER", "login"),
        ("CLIENT_ID", 7),
        ("LOGIN_SCOPES", ["a b"]),
        ("LOGIN_SCOPES", 7),
        ("OIDC_DISABLE_USER_ENDPOINT", "yes"),
        ("OIDC_SERVR", "https://login.example.com"),
    ],
)
def test_what_cannot_be_used(key: str, value: object) -> None:
    """Each is an error that names the key."""
    told = only_error(**{**GOOD, "KEYCLOAK_LOGIN_CONFIG": {**PROVIDER, key: value}})
    assert told.startswith(f"KEYCLOAK_LOGIN_CONFIG.{key}: ")


@pytest.mark.parametrize(
    "changes",
    [{"KEYCLOAK_LOGIN_CONFIG": ABSENT}, {"OTHER_LOGIN_CONFIG": PROVIDER}, {"KEYCLOAK_LOGIN_CONFIG": "hunter2"}],
)
def test_one_provider(changes: dict[str, Any]) -> None:
    """There is exactly one, and it is a mapping."""
    (told,) = errors(**{**GOOD, **changes})
    assert "LOGIN_CONFIG" in told


@pytest.mark.parametrize("value", ["https://i.test", ["http://i.test"], [7], ["https://"]])
def test_issuers(value: object) -> None:
    """Issuers that may be named are a list of https URLs."""
    assert only_error(ROBOT_FEDERATION_ISSUERS=value).startswith("ROBOT_FEDERATION_ISSUERS: ")
    assert settings(ROBOT_FEDERATION_ISSUERS=["https://i.test/a"]).federation_issuers == ("https://i.test/a",)
