"""ROBOT_FEDERATION: what its rules say, and what cannot be used."""

from typing import Any

import pytest

from node.config.report import report
from node.config.settings import FederationRule
from tests.configurations import only_error, settings

GOOD: dict[str, Any] = {"robot": "team+ci", "issuer": "https://ci.example.com", "subject": "repo:team/app:*"}


def test_rules() -> None:
    """A rule without an audience is for tokens that are meant for this registry."""
    made = settings(ROBOT_FEDERATION=[GOOD, {**GOOD, "audience": "registry"}]).federation
    rule = FederationRule("team+ci", "https://ci.example.com", "127.0.0.1:8100", "repo:team/app:*")
    assert made == (rule, FederationRule("team+ci", "https://ci.example.com", "registry", "repo:team/app:*"))
    told = report(settings(ROBOT_FEDERATION=[GOOD]))
    assert "also with a token of https://ci.example.com for 127.0.0.1:8100, about repo:team/app:*" in told


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("robot", "alice"),
        ("robot", None),
        ("issuer", "http://ci.example.com"),
        ("issuer", "https://user@ci.example.com"),
        ("issuer", "https://"),
        ("subject", "*"),
        ("subject", "repo:*"),
        ("subject", ""),
        ("audience", 7),
        ("subjects", "repo:team/app"),
    ],
)
def test_what_cannot_be_used(key: str, value: object) -> None:
    """Each is an error that names the rule and its field."""
    assert only_error(ROBOT_FEDERATION=[{**GOOD, key: value}]).startswith(f"ROBOT_FEDERATION[0].{key}: ")


@pytest.mark.parametrize("value", ["team+ci", {"robot": "team+ci"}, ["team+ci"]])
def test_what_is_no_list_of_rules(value: object) -> None:
    """A rule is a mapping, and there is a list of them."""
    assert only_error(ROBOT_FEDERATION=value).startswith("ROBOT_FEDERATION")
