"""Reads the library's descriptions of Amazon's services without what nobody here asks for: 9 of 12 MiB of a node's memory.

As the library keeps them they are ordered dictionaries of where four hundred services live in every region, and of a manual's text
for every field.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

from botocore.loaders import JSONFileLoader, Loader

_ASKED = ("s3", "sts")
"""Whom we talk to: stores, and the token service for roles."""
_TEXT = "documentation"


def _lean(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of a description as it is kept. Some texts are asked for, though not for what they say."""
    kept: dict[str, Any] = {}
    for name, value in pairs:
        if name == _TEXT and isinstance(value, str):
            kept[name] = ""
        elif name == "services" and isinstance(value, dict):
            kept[name] = {service: value[service] for service in _ASKED if service in value}
        else:
            kept[name] = value
    return kept


class _LeanFiles(JSONFileLoader):  # type: ignore[misc]  # the library has no types
    """The library's, which finds files and knows how they are packed; what is in them is kept as far as it is needed."""

    def _load_file(self, full_path: str, open_method: Any) -> dict[str, Any] | None:
        if not Path(full_path).is_file():
            return None
        with open_method(full_path, "rb") as file:
            found: dict[str, Any] = json.loads(file.read().decode(), object_pairs_hook=_lean)
        return found


@cache
def descriptions() -> Any:
    """Return what reads the descriptions, for the whole process: once, and not once per store."""
    return Loader(file_loader=_LeanFiles())
