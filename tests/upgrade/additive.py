"""Whether a change of the schema only adds, so that nodes of the last release go on beside this one's. Pure.

A step that takes something away is a contract step. It may come a release after the last one that used it, and says so in the line
above it: `-- Contract: unused since 0.2.0: <what>`.
"""

import re
from collections.abc import Iterable, Mapping

from attrs import frozen

_BODY = re.compile(r"\$(\w*)\$.*?\$\1\$", re.DOTALL)
_TEXT = re.compile(r"'(?:[^']|'')*'")
_CONTRACT = re.compile(r"^-- Contract: unused since (\d+\.\d+\.\d+): \S")
_TAKES = re.compile(
    r"""\bDROP\b(?!\s+(NOT\s+NULL|EXPRESSION)) | \bRENAME\b | \bTRUNCATE\b | \bSET\s+SCHEMA\b | \bSET\s+NOT\s+NULL\b
    | \bALTER\s+(COLUMN\s+)?\w+\s+(SET\s+DATA\s+)?TYPE\b | ^\s*DELETE\s+FROM\b""",
    re.VERBOSE | re.IGNORECASE,
)
_DROPPED = re.compile(r"\bDROP\s+(TRIGGER|CONSTRAINT|INDEX)\s+(?:IF\s+EXISTS\s+)?(\w+)", re.IGNORECASE)
_ADDS_COLUMN = re.compile(r"\bADD\s+COLUMN\s+(?:IF\s+NOT\s+EXISTS\s+)?(\w+)([^,]*)", re.IGNORECASE)


@frozen
class Statement:
    """One statement of a migration, without comments, texts and function bodies; `unused_since` as a contract step says."""

    text: str
    unused_since: str | None


def statements(sql: str) -> list[Statement]:
    """Return the statements of a migration file."""
    found: list[Statement] = []
    lines: list[str] = []
    since: str | None = None
    for line in _TEXT.sub("''", _BODY.sub("''", sql)).splitlines():
        if match := _CONTRACT.match(line):
            since = match[1]
        code = line.partition("--")[0]
        *ends, rest = code.split(";")
        for end in ends:
            found.append(Statement(" ".join([*lines, end]).strip(), since))
            lines, since = [], None
        lines.append(rest)
    if text := " ".join(lines).strip():
        found.append(Statement(text, since))
    return found


def takes_away(sql: str, last: str) -> list[str]:
    """Return the statements of a migration that take away what nodes of the release `last` may use."""
    found, whole = [], statements(sql)
    for place, statement in enumerate(whole):
        if statement.unused_since is not None:
            if _numbers(statement.unused_since) > _numbers(last):
                found.append(f"not before the next release, {statement.unused_since} is not out: {statement.text}")
        elif _TAKES.search(statement.text) and not _comes_back(statement.text, whole[place:]):
            found.append(statement.text)
        else:
            found += [
                f"a column that the last release does not fill: {statement.text}"
                for _, rest in _ADDS_COLUMN.findall(statement.text)
                if re.search(r"\bNOT\s+NULL\b", rest, re.IGNORECASE)
                and not re.search(r"\b(DEFAULT|GENERATED)\b", rest, re.IGNORECASE)
            ]
    return found


def _comes_back(text: str, later: Iterable[Statement]) -> bool:
    """Say whether all that is dropped is made again, under its name, by the same file."""
    dropped = _DROPPED.findall(text)
    if not dropped or len(re.findall(r"\bDROP\b", text, re.IGNORECASE)) != len(dropped):
        return False
    return all(
        any(
            re.search(rf"\b(CREATE|ADD)\b[^;]*\b{kind}\s+(?:IF\s+NOT\s+EXISTS\s+)?{name}\b", after.text, re.IGNORECASE)
            for after in later
        )
        for kind, name in dropped
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


@frozen
class Column:
    """A column of a table. `filled`: it has a default, or is computed."""

    type: str
    nullable: bool
    filled: bool


@frozen
class Schema:
    """What a database consists of, as far as a node notices."""

    columns: Mapping[tuple[str, str], Column]
    """By table (or view) and column."""
    functions: Mapping[str, str]
    """By name and argument types: what they return."""
    triggers: frozenset[str]
    """Table and name."""
    rules: Mapping[str, frozenset[str]]
    """By table: what a row must fulfil there, as PostgreSQL writes it: unique, check, foreign key, exclusion."""


@frozen
class Break:
    """Something that is not as it was: `name` is the column's, the function's, the trigger's or the table's own."""

    name: str
    text: str


def breaks(before: Schema, after: Schema) -> list[Break]:
    """Return what a node that was written for `before` would miss, or be refused, on `after`."""
    found = []
    tables = {table for table, _ in before.columns}
    for (table, name), column in before.columns.items():
        change = _change(column, after.columns.get((table, name)))
        found += [Break(name, f"{table}.{name} {change}")] if change else []
    found += [
        Break(name, f"{table}.{name} is new, may not be NULL and has no default")
        for (table, name), column in after.columns.items()
        if table in tables and (table, name) not in before.columns and not (column.nullable or column.filled)
    ]
    found += [
        Break(function.partition("(")[0], f"{function} is gone or returns something else")
        for function, result in before.functions.items()
        if after.functions.get(function) != result
    ]
    found += [
        Break(trigger.split()[-1], f"the trigger {trigger} is gone")
        for trigger in sorted(before.triggers - after.triggers)
    ]
    for table in sorted(tables):
        new = {name for of, name in after.columns if of == table and (table, name) not in before.columns}
        found += [
            Break(table, f"{table} has a new rule: {rule}")
            for rule in sorted(after.rules.get(table, frozenset()) - before.rules.get(table, frozenset()))
            if not any(re.search(rf"\b{name}\b", rule) for name in new)
        ]
    return found


def _change(before: Column, after: Column | None) -> str:
    if after is None:
        return "is gone"
    if after.type != before.type:
        return f"was {before.type} and is {after.type}"
    if before.nullable and not after.nullable:
        return "may not be NULL any more"
    if before.filled and not (after.filled or after.nullable):
        return "has no default any more"
    return ""
