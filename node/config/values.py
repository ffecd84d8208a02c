"""Reads one value of the configuration: flags, numbers, durations, sizes, lists of ids. Pure; says what would be right.

Every reader takes what YAML or JSON gave and returns the value, or raises `Unfit` whose text says what would be right. The
caller knows the key and adds what was found.
"""

import ipaddress
import math
import re
from collections.abc import Callable, Sequence

from attrs import define, field, frozen

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30


class Unfit(Exception):
    """A value that cannot be used. `str(error)` says what would be right."""


class Hidden(str):
    """Text that came from a file or the environment, perhaps a secret: no message shows it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "a value that is not shown"


@frozen
class Problem:
    """One error of a configuration: where, what was found there (never a secret), and what would be right.

    `found` is empty where `right` says it already.
    """

    key: str
    found: str
    right: str

    def __str__(self) -> str:
        return f"{self.key}: found {self.found}; {self.right}" if self.found else f"{self.key}: {self.right}"


@define
class Findings:
    """What reading a configuration turned up so far: errors, and remarks that start-up says aloud."""

    problems: list[Problem] = field(factory=list)
    warnings: list[str] = field(factory=list)
    unread: set[str] = field(factory=set)
    """Keys whose value could not be had; what their readers say of the empty place would mislead."""

    def wrong(self, key: str, found: str, right: str) -> None:
        """Note an error."""
        if key not in self.unread:
            self.problems.append(Problem(key, found, right))

    def warn(self, line: str) -> None:
        """Note a remark of one line."""
        self.warnings.append(line)


def show(value: object, *, secret: bool = False) -> str:
    """Return a value for a message: short, on one line, and without its contents where it may hold a secret."""
    match value:
        case None:
            return "nothing"
        case _ if secret or isinstance(value, Hidden):
            return repr(Hidden())
        case bool():
            return "true" if value else "false"
        case str():
            text = value if len(value) <= 60 else f"{value[:57]}..."
            return f'"{text}"' if text.isprintable() else repr(text)
        case int() if abs(value) >= 10**60:
            return "a number of more than 60 digits"
        case int() | float():
            return str(value)
        case list() | tuple():
            return f"a list of {len(value)}"
        case dict():
            return "a mapping"
        case _:
            return f"a {type(value).__name__} ({value})"


def read_flag(value: object) -> bool:
    """Return a YAML boolean. Quay's files hold true and false; text such as "true" is refused, as Quay takes any text for true."""
    if isinstance(value, bool):
        return value
    raise Unfit("write true or false, without quotes")


def read_text(value: object) -> str:
    """Return text that is not empty."""
    if isinstance(value, str) and value.strip():
        return value
    raise Unfit("write some text, in quotes if it looks like a number or a yes or no")


def read_long_text(least: int) -> Callable[[object], str]:
    """Return a reader of text of at least so many characters."""

    def read(value: object) -> str:
        if isinstance(value, str) and len(value.strip()) >= least:
            return value.strip()
        raise Unfit(f"write at least {least} random characters, in quotes, the same in every region")

    return read


def read_names(value: object) -> tuple[str, ...]:
    """Return a list of names of accounts."""
    if isinstance(value, list | tuple) and all(isinstance(item, str) and item for item in value):
        return tuple(value)
    raise Unfit("write a list of names, such as [alice, bob]")


def read_choice(*choices: str) -> Callable[[object], str]:
    """Return a reader of one of `choices`."""

    def read(value: object) -> str:
        if isinstance(value, str) and value in choices:
            return value
        raise Unfit(f"write one of: {', '.join(choices)}")

    return read


def _in_range(number: float, least: float, most: float | None, say: Callable[[float], str]) -> None:
    if number < least or (most is not None and number > most):
        raise Unfit(f"write at least {say(least)}" if most is None else f"write {say(least)} to {say(most)}")


def read_number(least: int, most: int | None = None) -> Callable[[object], int]:
    """Return a reader of whole numbers from `least` to `most`."""

    def read(value: object) -> int:
        if isinstance(value, Hidden) and value.isascii() and value.isdigit():
            value = int(value[:20])
        if isinstance(value, bool) or not isinstance(value, int):
            raise Unfit("write a whole number")
        _in_range(value, least, most, lambda number: f"{number:.0f}")
        return value

    return read


_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)", re.ASCII)
_LONGEST = 36500 * 86400.0
"""A hundred years: much longer, and clocks and the database's times end before it does."""


def parse_duration(value: object) -> float:
    """Return seconds: from a number, also as text, or from text such as "500ms", "5s", "48h", "2w" or "1h 30m"."""
    if isinstance(value, str):
        # What stands in an environment variable, a file or on a command line is text, numbers too.
        value = _seconds(value.strip())
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unfit('write a number of seconds, or text such as "500ms", "5s", "10m", "48h" or "2w"')
    if not value >= 0:
        raise Unfit("write a number of seconds that is not negative")
    if value > _LONGEST:
        raise Unfit(f"write at most {say_duration(_LONGEST)}")
    return float(value)


def _seconds(text: str) -> float | None:
    if re.fullmatch(r"\d+(?:\.\d+)?", text, re.ASCII):
        return float(text)
    if re.fullmatch(rf"(?:{_DURATION.pattern}\s*)+", text, re.ASCII):
        return sum(float(number) * _DURATION_UNITS[unit] for number, unit in _DURATION.findall(text))
    return None


def say_duration(seconds: float) -> str:
    """Return a duration as people write it: "5s", "1h 30m", "250ms"."""
    if seconds < 1 and seconds:
        return f"{seconds * 1000:g}ms"
    if seconds != int(seconds):
        return f"{seconds:g}s"
    words, rest = [], int(seconds)
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, length)
        if count:
            words.append(f"{count}{unit}")
    return " ".join(words) or "0s"


def read_duration(least: float = 0.0, most: float | None = None) -> Callable[[object], float]:
    """Return a reader of durations in seconds from `least` to `most`."""

    def read(value: object) -> float:
        seconds = parse_duration(value)
        _in_range(seconds, least, most, say_duration)
        return seconds

    return read


def read_durations(value: object) -> tuple[float, ...]:
    """Return a list of durations, in seconds, at least one. One text is split as in the environment."""
    if isinstance(value, str):
        value = split_ids(value)
    if not isinstance(value, list | tuple) or not value:
        raise Unfit('write a list of durations, such as ["0s", "1d", "2w"]')
    return tuple(parse_duration(item) for item in value)


def read_whole_duration(least: int, most: int) -> Callable[[object], int]:
    """Return a reader of durations in whole seconds."""
    inner = read_duration(least, most)

    def read(value: object) -> int:
        seconds = inner(value)
        if seconds != int(seconds):
            raise Unfit("write whole seconds")
        return int(seconds)

    return read


_SIZE_UNITS = {"": 1, "b": 1}
_SIZE_UNITS |= {letter + end: 1024**power for power, letter in enumerate("kmgt", 1) for end in ("", "ib")}
_SIZE_UNITS |= {f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)}
_LARGEST = 1 << 62
"""Bytes, 4 EiB: the database counts no further than twice as much."""
_SIZE = re.compile(r"(\d{1,20}(?:\.\d{1,20})?)\s*([a-z]*)", re.ASCII | re.IGNORECASE)


def parse_size(value: object) -> int:
    """Return bytes: from a whole number, or from text such as "20G", "64MiB" (powers of 1024) or "5GB" (powers of 1000).

    A bare letter counts in 1024s, as in the web server in front of Quay (MAXIMUM_LAYER_SIZE).
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str):
        found = _SIZE.fullmatch(value.strip())
        if found is not None and (unit := _SIZE_UNITS.get(found[2].lower())) is not None:
            size = float(found[1]) * unit if "." in found[1] else int(found[1]) * unit
            if math.isfinite(size) and size == int(size):
                return int(size)
    raise Unfit('write a number of bytes, or text such as "20G", "64MiB" or "5MB"')


def say_size(size: float) -> str:
    """Return a size as people write it: "20 GiB", "512 B"."""
    size = int(size)
    for name, unit in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    for name, unit in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if size >= 10 * unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} B"


def read_size(least: int = 0, most: int | None = None) -> Callable[[object], int]:
    """Return a reader of sizes in bytes from `least` to `most`."""

    def read(value: object) -> int:
        size = parse_size(value)
        if size > _LARGEST:
            raise Unfit("write at most 4 EiB")
        _in_range(size, least, most, say_size)
        return size

    return read


def split_ids(text: str) -> tuple[str, ...]:
    """Return the ids in `text`, which white space or commas or both separate. Quay splits on white space only."""
    return tuple(word for word in re.split(r"[\s,]+", text) if word)


def read_ids(value: object) -> tuple[str, ...]:
    """Return a list of ids; each must be text. One text is split as in the environment."""
    if isinstance(value, str):
        return split_ids(value)
    if not isinstance(value, Sequence):
        raise Unfit("write a list of location ids")
    for item in value:
        if not isinstance(item, str):
            # YAML 1.1 reads no, off and 12 as something else.
            raise Unfit(f"every id must be text, and {show(item)} is not: put it in quotes")
    return tuple(value)


_HOST = r"(?:\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?)"
_HOST_AND_PORT = re.compile(rf"({_HOST})(?::(\d{{1,5}}))?", re.ASCII)


def read_networks(value: object) -> tuple[str, ...]:
    """Return a list of networks such as 10.1.0.0/16, also as one text with commas or white space between."""
    found = []
    for text in read_ids(value):
        try:
            found.append(str(ipaddress.ip_network(text)))
        except ValueError:
            raise Unfit(f"{show(text)} is no network: write 10.1.0.0/16, 192.0.2.7 or fd00::/8") from None
    return tuple(found)


def parse_host(text: str) -> tuple[str, int | None]:
    """Return the host and the port, None if there is none, of "host", "host:port" or "[::1]:port"."""
    found = _HOST_AND_PORT.fullmatch(text)
    if found is None or (found[2] is not None and not 0 <= int(found[2]) <= 65535):
        raise Unfit('write a host name or address and, if need be, a port: "registry.example.com" or "[::1]:8443"')
    return found[1].strip("[]"), None if found[2] is None else int(found[2])


def read_hostname(value: object) -> str:
    """Return a host name with or without a port, and nothing else: no scheme, no path."""
    text = read_text(value)
    if "://" in text or "/" in text:
        raise Unfit(
            'write the bare name that clients use, such as "registry.example.com:8443", without scheme and path'
        )
    parse_host(text)
    return text


def parse_bind(text: str) -> tuple[str, int]:
    """Return the host and port to listen on, from "host:port", "[::1]:port" or ":port" (every address)."""
    host, port = parse_host(f"0.0.0.0{text}" if text.startswith(":") else text)  # noqa: S104 - asked for by the operator
    if port is None:
        raise Unfit('write host:port, such as "127.0.0.1:8080"')
    return host, port
