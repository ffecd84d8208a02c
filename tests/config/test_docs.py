"""The page about the configuration has every key, with the default that the program has."""

import re
from pathlib import Path

import attrs
import pytest

from node.config.keys import ENVIRONMENT, KEYS, STRUCTURED, SUPPORTED, Key
from node.config.settings import Settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "configuration.md").read_text()
# | `KEY` | default | source | meaning |
ROWS = {
    key: (default.strip(), source.strip(), meaning.strip())
    for key, default, source, meaning in re.findall(r"^\| `([A-Z0-9_]+)` \|([^|]*)\|([^|]*)\|([^|]*)\|$", PAGE, re.M)
}
DEFAULTS = {field.name: field.default for field in attrs.fields(Settings)}
IN_WORDS = {"required": attrs.NOTHING, "unlimited": None, "never": None, "none": None}


def test_every_key_has_a_row_and_every_row_is_a_key() -> None:
    """The tables and the program know the same keys."""
    assert set(ROWS) == SUPPORTED


def test_every_setting_has_a_key() -> None:
    """There is no setting that a file cannot reach; those of structured keys are read in rooms of their own."""
    structured = {
        "database_uri",
        "read_replicas",
        "database_pool",
        "locations",
        "preference",
        "default_locations",
        "redis",
        "tee_spool",
    }
    structured |= {"upload_spool", "edge", "ldap", "oidc", "federation", "authorities", "warnings"}
    assert {key.field for key in KEYS} | structured == set(DEFAULTS)


def test_every_variable_has_a_row() -> None:
    """The environment's variables are all explained."""
    assert all(f"\n| `{name}` | " in PAGE for name in ENVIRONMENT)


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_the_default_on_the_page_is_the_program_s(key: Key) -> None:
    """What the page says happens without the key is what happens."""
    said = ROWS[key.name][0]
    if said in IN_WORDS:
        assert DEFAULTS[key.field] is IN_WORDS[said]
        return
    text = said.strip("`")
    plain: object = {"true": True, "false": False, "[]": []}.get(text, int(text) if text.isdigit() else text)
    assert key.read(plain) == DEFAULTS[key.field]


def test_the_source_of_every_key_is_said() -> None:
    """Each key is Quay's or our own."""
    assert all(re.match(r"Quay|own", source) for _, source, _ in ROWS.values())


def test_the_deployed_example_mentions_every_key() -> None:
    """The example shows each key, in use or commented out with its default; Redis has one name there."""
    example = (ROOT / "deploy" / "config.example.yaml").read_text()
    mentioned = set(re.findall(r"^(?:# )?([A-Z][A-Z0-9_]+):", example, re.M))
    assert {*(key.name for key in KEYS), *STRUCTURED} - mentioned == {"BUILDLOGS_REDIS"}


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_commented_out_values_of_the_example_can_be_used(key: Key) -> None:
    """Whoever takes the comment sign away has a value that works."""
    example = (ROOT / "deploy" / "config.example.yaml").read_text()
    found = re.search(rf"^(?:# )?{key.name}: (\S+)", example, re.M)
    assert found is not None
    text = found[1]
    key.read({"true": True, "false": False, "[]": []}.get(text, int(text) if text.isdigit() else text))
