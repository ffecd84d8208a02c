"""Placement policy of a namespace: rules in, sets of locations out. SQL does algebra on the sets and never sees a rule. Pure.

    {"required": ["us", "eu"], "never": ["ap"], "tags": [{"pattern": "v*", "locations": ["br"]}], "durability": "quorum:2"}

Every key may be left out. Without `required` the default locations count. `never` is subtracted from everything. A tag pattern
(shell style: `*`, `?`, `[...]`) adds locations for the closure of the tags that it matches, with what is attached to it.
"""

import fnmatch
import re
from collections.abc import Collection, Mapping, Sequence

from attrs import Factory, frozen

MOST_TAG_RULES = 100
_KEYS = ("required", "never", "tags", "durability")


class PolicyInvalid(ValueError):
    """A policy cannot be obeyed. `problems` names every key, what was found and what would be right."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


_COPIES = re.compile(r"0*[1-9][0-9]?", re.ASCII)


class DurabilityInvalid(ValueError):
    """A text is not a durability. The message says what would be right."""


@frozen(order=False)
class Durability:
    """How many verified copies of a closure a push waits for: `copies`, and all required locations too if `every`."""

    copies: int = 1
    every: bool = False

    @classmethod
    def parse(cls, text: str) -> "Durability":
        """Return what `local`, `quorum:N` or `all` asks for. Raises DurabilityInvalid."""
        word, colon, number = text.strip().lower().partition(":")
        if word == "local" and not colon:
            return cls()
        if word == "all" and not colon:
            return cls(1, every=True)
        # Two digits at most: thousands would be more than Python converts.
        if word == "quorum" and _COPIES.fullmatch(number):
            return cls(int(number))
        raise DurabilityInvalid(f"{text[:40]!r} is not local, quorum:N (N from 1 to 99) or all")

    def __str__(self) -> str:
        return "all" if self.every else "local" if self.copies == 1 else f"quorum:{self.copies}"

    @property
    def waits(self) -> bool:
        """Whether a push has anything to wait for: the first copy is always there."""
        return self.every or self.copies > 1

    def stronger(self, other: "Durability") -> "Durability":
        """Return what satisfies both."""
        return Durability(max(self.copies, other.copies), self.every or other.every)


@frozen
class TagRule:
    """Tags that match `pattern` must be in `locations` too."""

    pattern: str
    locations: frozenset[str]


@frozen
class Policy:
    """A namespace's rules. `required` of None leaves the default locations."""

    required: frozenset[str] | None = None
    never: frozenset[str] = frozenset()
    tags: tuple[TagRule, ...] = Factory(tuple)
    durability: Durability = Durability()

    def for_tag(self, tag: str) -> frozenset[str]:
        """Return the locations that the patterns add for a tag."""
        found = (rule.locations for rule in self.tags if fnmatch.fnmatchcase(tag, rule.pattern))
        return frozenset().union(*found) - self.never


NO_POLICY = Policy()


def parse_policy(document: object, known: Collection[str]) -> Policy:
    """Return the policy that a JSON document spells, over the locations `known`. Raises PolicyInvalid with every problem."""
    problems: list[str] = []
    if not isinstance(document, Mapping):
        raise PolicyInvalid(
            [f"a policy is an object with the keys {', '.join(_KEYS)}; found {type(document).__name__}"]
        )
    problems += [f"{key}: no such key; known are {', '.join(_KEYS)}" for key in document if key not in _KEYS]
    required = document.get("required")
    never = _locations(document.get("never", []), "never", known, problems)
    wanted = None if required is None else _locations(required, "required", known, problems)
    if wanted is not None and not wanted:
        problems.append(
            "required: an empty list would leave blobs nowhere; leave the key out for the default locations"
        )
    if wanted is not None and wanted & never:
        problems.append(f"required: {', '.join(sorted(wanted & never))} is in never, too")
    if never and never >= frozenset(known):
        problems.append("never: names every location; blobs must be allowed somewhere")
    rules = _tag_rules(document.get("tags", []), known, problems)
    durability = Durability()
    try:
        durability = Durability.parse(str(document.get("durability", "local")))
    except DurabilityInvalid as error:
        problems.append(f"durability: {error}")
    if problems:
        raise PolicyInvalid(problems)
    return Policy(wanted, never, rules, durability)


def _locations(value: object, field: str, known: Collection[str], problems: list[str]) -> frozenset[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        problems.append(f"{field}: {value!r} is not a list of locations; known are {', '.join(sorted(known))}")
        return frozenset()
    problems += [
        f"{field}: {item!r} is no location; known are {', '.join(sorted(known))}" for item in value if item not in known
    ]
    return frozenset(value)


def _tag_rules(value: object, known: Collection[str], problems: list[str]) -> tuple[TagRule, ...]:
    if not isinstance(value, list) or len(value) > MOST_TAG_RULES:
        problems.append(f"tags: a list of at most {MOST_TAG_RULES} objects with pattern and locations is needed")
        return ()
    rules = []
    for n, item in enumerate(value):
        pattern = item.get("pattern") if isinstance(item, Mapping) else None
        if not isinstance(item, Mapping) or not isinstance(pattern, str) or not 0 < len(pattern) <= 128:
            problems.append(f"tags[{n}]: an object with a pattern of 1 to 128 characters and locations is needed")
            continue
        problems += [f"tags[{n}].{key}: no such key" for key in item if key not in ("pattern", "locations")]
        rules.append(TagRule(pattern, _locations(item.get("locations"), f"tags[{n}].locations", known, problems)))
    return tuple(rules)


def dump_policy(policy: Policy) -> dict[str, object]:
    """Return the document that `parse_policy` reads as this policy."""
    document: dict[str, object] = {}
    if policy.required is not None:
        document["required"] = sorted(policy.required)
    if policy.never:
        document["never"] = sorted(policy.never)
    if policy.tags:
        document["tags"] = [{"pattern": rule.pattern, "locations": sorted(rule.locations)} for rule in policy.tags]
    if policy.durability.waits:
        document["durability"] = str(policy.durability)
    return document


def debt(required: Collection[str], present: Collection[str]) -> frozenset[str]:
    """Return the locations that still have to get a copy: required minus present. A suspect copy is not present."""
    return frozenset(required) - frozenset(present)
