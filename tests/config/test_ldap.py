"""Where the LDAP directory is: what the keys say, and what cannot be used."""

from typing import Any

import pytest

from node.config.report import report
from node.config.settings import LdapSettings
from tests.configurations import errors, only_error, settings

GOOD: dict[str, Any] = {
    "AUTHENTICATION_TYPE": "LDAP",
    "LDAP_URI": "ldaps://ldap.example.com",
    "LDAP_BASE_DN": ["dc=example", "dc=com"],
    "LDAP_ADMIN_DN": "cn=registry,dc=example,dc=com",
    "LDAP_ADMIN_PASSWD": "hunter2",
}


def test_a_directory() -> None:
    """Quay's lists of components and plain text say the same, and the port is the scheme's."""
    made = settings(**GOOD, LDAP_USER_RDN=["ou=people"], LDAP_UID_ATTR="sAMAccountName").ldap
    assert isinstance(made, LdapSettings)
    assert (made.host, made.port, made.secure) == ("ldap.example.com", 636, True)
    assert (made.base, made.uid_attribute) == ("ou=people,dc=example,dc=com", "sAMAccountName")
    plain = settings(**{**GOOD, "LDAP_URI": "ldap://[::1]:1389", "LDAP_BASE_DN": "dc=example,dc=com"}).ldap
    assert plain is not None
    assert (plain.host, plain.port, plain.secure, plain.base) == ("::1", 1389, False, "dc=example,dc=com")
    assert "hunter2" not in repr(made)


def test_the_report() -> None:
    """`config check` says who proves people, and whether over TLS, without the password."""
    told = report(settings(**GOOD, LDAP_USER_RDN="ou=people"))
    assert "proven by ldaps://ldap.example.com, below ou=people,dc=example,dc=com, over TLS" in told
    assert "in clear text" in report(settings(**{**GOOD, "LDAP_URI": "ldap://localhost"}))
    assert "hunter2" not in told


def test_passwords_in_clear_text() -> None:
    """A directory without TLS on another machine is a warning that names the host."""
    plain = {**GOOD, "LDAP_URI": "ldap://ldap.example.com"}
    assert [line for line in settings(**plain).warnings if "ldap.example.com" in line]
    assert not [line for line in settings(**plain, LDAP_START_TLS=True).warnings if "LDAP" in line]


def test_keys_without_a_directory() -> None:
    """They are named and ignored where the database proves people."""
    made = settings(**{**GOOD, "AUTHENTICATION_TYPE": "Database"})
    assert made.ldap is None
    assert [line for line in made.warnings if "LDAP_URI" in line]


@pytest.mark.parametrize("key", ["LDAP_URI", "LDAP_BASE_DN", "LDAP_ADMIN_DN", "LDAP_ADMIN_PASSWD"])
def test_what_a_directory_needs(key: str) -> None:
    """Each of the four is required, and the error names it."""
    assert only_error(**{**GOOD, key: None}).startswith(f"{key}: found nothing")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("LDAP_URI", "https://ldap.example.com"),
        ("LDAP_URI", "ldap://user:s3cr3t@ldap.example.com"),
        ("LDAP_URI", "ldap://ldap.example.com/dc=example?uid"),
        ("LDAP_URI", "ldap://ldap.example.com:port"),
        ("LDAP_BASE_DN", "example.com"),
        ("LDAP_BASE_DN", []),
        ("LDAP_UID_ATTR", "uid)(x=y"),
        ("LDAP_USER_FILTER", "memberOf=x"),
        ("LDAP_SUPERUSER_FILTER", "((a=b)"),
        ("LDAP_START_TLS", True),
        ("LDAP_TIMEOUT", "1h"),
    ],
)
def test_what_cannot_be_used(key: str, value: object) -> None:
    """Each is an error that names the key."""
    assert only_error(**{**GOOD, key: value}).startswith(f"{key}: ")


@pytest.mark.parametrize("kind", ["JWT", "Keystone"])
def test_what_is_not_there(kind: str) -> None:
    """Other kinds of Quay's are refused with those that there are."""
    assert errors(AUTHENTICATION_TYPE=kind) == [
        f'AUTHENTICATION_TYPE: found "{kind}"; write one of: Database, LDAP, OIDC'
    ]
