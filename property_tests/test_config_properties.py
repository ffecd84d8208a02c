"""Values of the configuration: what people may write for the same thing is read the same, and nothing unforeseen escapes."""

import json
import string
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from node.config.keys import KEYS, STRUCTURED, SUPPORTED, nearest
from node.config.load import ConfigurationErrors, read_settings
from node.config.values import (
    Unfit,
    parse_bind,
    parse_duration,
    parse_size,
    say_duration,
    say_size,
    show,
    split_ids,
)

IDS = st.text(string.ascii_letters + string.digits + "_-.", min_size=1, max_size=12)
SEPARATORS = st.text(" \t\n,", min_size=1, max_size=3)
# What a YAML or JSON file can hold.
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30)
ANYTHING = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PLAIN, inner, max_size=3), max_leaves=6
)


@given(st.lists(st.tuples(IDS, SEPARATORS)), st.text(" \t\n,", max_size=3))
def test_ids_come_back_whatever_separates_them(words: list[tuple[str, str]], before: str) -> None:
    """Any mixture of white space and commas separates ids; order and number are kept."""
    text = before + "".join(word + separator for word, separator in words)
    assert split_ids(text) == tuple(word for word, _ in words)


@given(st.integers(min_value=0, max_value=10 * 365 * 86400))
def test_durations_are_read_as_they_are_said(seconds: int) -> None:
    """What the report says for a duration is what the file may say for it."""
    assert parse_duration(say_duration(seconds)) == seconds == parse_duration(seconds)


@given(st.integers(min_value=1, max_value=999))
def test_milliseconds_are_read_as_they_are_said(milliseconds: int) -> None:
    """Parts of a second survive, too."""
    assert round(parse_duration(say_duration(milliseconds / 1000)) * 1000, 6) == milliseconds


@given(st.integers(min_value=0, max_value=1 << 50), st.sampled_from(["", "K", "MiB", "g", "TiB", "kB", "MB", "GB"]))
def test_sizes_scale_by_their_unit(number: int, unit: str) -> None:
    """A size with a unit is the number times the unit: powers of 1024, of 1000 where a B stands without an i."""
    base = 1000 if unit.upper() in {"KB", "MB", "GB"} else 1024
    power = " KMGT".index(unit[:1].upper() or " ")
    assert parse_size(f"{number}{unit}") == parse_size(f" {number} {unit} ") == number * base**power


@given(st.integers(min_value=0, max_value=1 << 45))
def test_round_sizes_are_read_as_they_are_said(kibibytes: int) -> None:
    """What the report says for a round size is what the file may say for it."""
    said = say_size(kibibytes * 1024)
    assert "." in said or parse_size(said) == kibibytes * 1024


def complaint(read: Callable[[Any], object], value: Any) -> str | None:
    """Return what a reader says of a value, None if it takes it."""
    try:
        read(value)
    except Unfit as error:
        return f"{show(value)}; {error}"
    return None


def complaints(document: dict[Any, Any], environ: dict[str, str]) -> int | None:
    """Return the number of errors in a configuration, None if it is good."""
    try:
        read_settings(document, environ)
    except ConfigurationErrors as errors:
        return len(errors.problems)
    return None


@given(ANYTHING)
def test_every_reader_returns_or_says_what_is_right(value: Any) -> None:
    """No value makes a reader fail in another way, and what it says fits on one line."""
    for key in KEYS:
        said = complaint(key.read, value)
        assert said is None or (said.isprintable() and not said.endswith("; "))


@given(
    st.dictionaries(st.sampled_from(STRUCTURED) | st.sampled_from(sorted(SUPPORTED)) | st.text(max_size=8), ANYTHING)
)
def test_any_mapping_is_settings_or_errors(document: dict[str, Any]) -> None:
    """Whatever stands in a file, the outcome is settings or named errors, never a traceback."""
    assert complaints(document, {}) != 0


@given(st.text(max_size=40) | st.dictionaries(st.sampled_from(sorted(SUPPORTED)), PLAIN).map(json.dumps))
def test_any_override_is_settings_or_errors(text: str) -> None:
    """The same holds for the environment."""
    environ = {"QUAY_OVERRIDE_CONFIG": text, "QUAY_DISTRIBUTED_STORAGE_PREFERENCE": text}
    assert complaints({}, environ) != 0


@given(st.sampled_from(sorted(SUPPORTED)), st.data())
def test_two_swapped_letters_are_found(name: str, data: st.DataObject) -> None:
    """A slip of two neighbouring letters leads back to the key."""
    place = data.draw(st.integers(min_value=0, max_value=len(name) - 2))
    slip = name[:place] + name[place + 1] + name[place] + name[place + 2 :]
    assert nearest(slip, SUPPORTED) == name


@given(st.text(max_size=40))
def test_a_bind_address_is_host_and_port_or_unfit(text: str) -> None:
    """Nothing else comes out of any text."""
    try:
        host, port = parse_bind(text)
    except Unfit:
        return
    assert host
    assert 0 <= port <= 65535
