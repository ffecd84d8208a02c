"""Tags that never move: patterns shown and replaced, of a namespace or of one repository."""

import re
from collections.abc import Mapping

from node.api.frame import Json, Problem, Wrong
from node.api.tags import Means
from node.config.values import show
from node.names import is_name, namespace_of
from node.records.immutability import read_patterns, write_patterns

MOST_PATTERNS = 50

_PATTERN = re.compile(r"[a-zA-Z0-9_.*?-]{1,128}")


async def get_immutability(means: Means, *, namespace: str = "", repository: str | None = None) -> Json:
    """Return the patterns of a repository, or those for a whole namespace. Raises Problem (404)."""
    namespace = _namespace(means, namespace, repository)
    found = await read_patterns(means.database, namespace, repository)
    if found is None:
        raise _unknown(namespace, repository)
    return {"namespace": namespace, "repository": repository, "patterns": list(found)}


async def set_immutability(
    means: Means, body: Mapping[str, object], *, namespace: str = "", repository: str | None = None
) -> Json:
    """Replace them: body `{"patterns": ["v*"]}`, with `*` for any text and `?` for one character. Raises Problem: 400, 404.

    A tag that matches one stays where it is: it can be neither moved nor deleted, also not with its manifest. Tags that are not
    there yet can be pushed.
    """
    raw = body.get("patterns")
    patterns = list(dict.fromkeys(map(str, raw))) if isinstance(raw, list) else []
    wrong = [
        Wrong("patterns", show(pattern[:140]), "write letters, digits, '_', '.', '-', '*' and '?', at most 128 of them")
        for pattern in patterns
        if not _PATTERN.fullmatch(pattern)
    ]
    if len(patterns) > MOST_PATTERNS:
        wrong.append(Wrong("patterns", f"{len(patterns)} patterns", f"write at most {MOST_PATTERNS}"))
    if wrong:
        detail = "; ".join(f"{line.field}: found {line.found}; {line.right}" for line in wrong)
        raise Problem(400, "patterns that cannot be used", detail, wrong=tuple(wrong))
    namespace = _namespace(means, namespace, repository)
    if repository is None and (not is_name(namespace) or "/" in namespace):
        raise Problem(400, "not a namespace", f"{namespace[:100]!r}: the first part of a repository's name is needed")
    compiled = [(pattern, expression(pattern)) for pattern in patterns]
    if not await write_patterns(means.database, namespace, repository, compiled):
        raise _unknown(namespace, repository)
    return await get_immutability(means, namespace=namespace, repository=repository)


def expression(pattern: str) -> str:
    """Return a pattern as a regular expression, as Python and PostgreSQL read it alike. Pure."""
    pieces = {"*": ".*", "?": "."}
    return f"^{''.join(pieces.get(character) or re.escape(character) for character in pattern)}$"


def _namespace(means: Means, namespace: str, repository: str | None) -> str:
    return namespace if repository is None else namespace_of(repository, means.settings.library_namespace)


def _unknown(namespace: str, repository: str | None) -> Problem:
    if repository is not None:
        return Problem(404, "no such repository", repository[:255])
    return Problem(404, "no such namespace", namespace[:255])
