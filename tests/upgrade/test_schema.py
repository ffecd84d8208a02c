"""Schema changes expand first: what the last release's nodes use is still there when this tree's migrations were applied."""

import re
from collections.abc import Sequence
from importlib.metadata import version

import pytest
import trio
from attrs import evolve

from engines.crossing import open_bridge
from node.records import migrate
from node.records.migrate import Migration, migrations
from node.records.postgres import open_database
from tests.services import execute, fetch_rows
from tests.upgrade.additive import Column, Schema, breaks, statements, takes_away
from tests.upgrade.release import NoRelease, Release, last_release

_FIRST = 4
"""The migrations up to this one made the first release's schema: nobody ran before them."""

_STATEMENT_SECONDS = 3
"""What a connection may take, too, so no less on a busy machine."""

_COLUMNS = """
    SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), NOT a.attnotnull,
        a.atthasdef OR a.attidentity <> '' OR a.attgenerated <> ''
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm') AND a.attnum > 0 AND NOT a.attisdropped
"""
_FUNCTIONS = """
    SELECT p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')', pg_get_function_result(p.oid)
    FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace
"""
_TRIGGERS = "SELECT tgrelid::regclass || ' ' || tgname FROM pg_trigger WHERE NOT tgisinternal"
_RULES = """
    SELECT c.conrelid::regclass::text, pg_get_constraintdef(c.oid) FROM pg_constraint c
    WHERE c.connamespace = 'public'::regnamespace AND c.conrelid <> 0
    UNION ALL SELECT i.indrelid::regclass::text, pg_get_indexdef(i.indexrelid) FROM pg_index i JOIN pg_class x ON x.oid = i.indrelid
    WHERE x.relnamespace = 'public'::regnamespace AND i.indisunique
    AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conindid = i.indexrelid)
"""


def schema_of(uri: str) -> Schema:
    rules: dict[str, set[str]] = {}
    for table, rule in fetch_rows(uri, _RULES):
        rules.setdefault(table, set()).add(rule)
    return Schema(
        {(table, name): Column(*rest) for table, name, *rest in fetch_rows(uri, _COLUMNS)},
        dict(fetch_rows(uri, _FUNCTIONS)),
        frozenset(name for (name,) in fetch_rows(uri, _TRIGGERS)),
        {table: frozenset(of_table) for table, of_table in rules.items()},
    )


def test_the_last_release_misses_nothing(release: Release, database_uri: str) -> None:
    """On a database with this tree's migrations all that the release made is there as it was, and no rule is new."""
    ours = {f"{migration.number:04}_{migration.name}.sql": migration.sql for migration in migrations()}
    released = release.migrations()
    assert {name: ours.get(name) for name in released} == released, "a migration that was released has changed"
    for name in sorted(released):
        execute(database_uri, released[name])
    before = schema_of(database_uri)
    assert before.columns
    assert before.rules
    for name in sorted(set(ours) - set(released)):
        execute(database_uri, ours[name])
    contracted = " ".join(
        statement.text for sql in ours.values() for statement in statements(sql) if statement.unused_since is not None
    )
    found = breaks(before, schema_of(database_uri))
    assert [line.text for line in found if not re.search(rf"\b{line.name}\b", contracted)] == []


async def test_a_migration_may_take_longer_than_a_statement(database_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a large table makes slow is waited for, by the node that does it and by one that starts meanwhile."""
    slow = Migration(1, "slow", f"SELECT pg_sleep({_STATEMENT_SECONDS + 1})")
    monkeypatch.setattr(migrate, "migrations", lambda: [slow])
    applied: list[Sequence[str]] = []

    async def start() -> None:
        async with open_database(database_uri, deadline=_STATEMENT_SECONDS) as database:
            applied.append(await migrate.migrate(database))

    async with open_bridge(), trio.open_nursery() as nodes:
        nodes.start_soon(start)
        nodes.start_soon(start)
    assert applied == [["0001_slow"], []]


def test_every_migration_adds() -> None:
    """No migration drops, renames, retypes or forbids; a contract step names the release that has stopped using what it drops."""
    try:
        last = last_release().version
    except NoRelease:
        last = version("antipode")
    later = [migration for migration in migrations() if migration.number > _FIRST]
    assert {migration.name: found for migration in later if (found := takes_away(migration.sql, last))} == {}


@pytest.mark.parametrize(
    "sql",
    [
        "DROP TABLE tag;",
        "ALTER TABLE tag DROP COLUMN name;",
        "ALTER TABLE tag RENAME COLUMN name TO label;",
        "ALTER TABLE tag ALTER COLUMN name TYPE varchar(9);",
        "ALTER TABLE tag ALTER name SET DATA TYPE varchar(9);",
        "ALTER TABLE tag ALTER COLUMN manifest_id SET NOT NULL;",
        "ALTER TABLE tag ADD COLUMN colour text NOT NULL;",
        "ALTER TABLE tag ADD COLUMN size bigint, ADD COLUMN colour text NOT NULL;",
        "DROP TRIGGER one ON tag; CREATE TRIGGER other AFTER INSERT ON tag EXECUTE FUNCTION f();",
        "TRUNCATE tag;",
        "-- Contract: unused since 0.3.0: tag.name\nALTER TABLE tag DROP COLUMN name;",
        "-- Contract: unused since 0.1.0: one of them\nDROP TABLE one; DROP TABLE other;",
    ],
)
def test_what_takes_away_is_seen(sql: str) -> None:
    """Whatever the last release may use is not taken, and a contract step covers one statement of a release that is out."""
    assert takes_away(sql, "0.2.0")


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE colour (name text NOT NULL); CREATE INDEX colour_name ON colour (name);",
        "ALTER TABLE tag ADD COLUMN colour text NOT NULL DEFAULT 'red', ADD COLUMN size bigint;",
        "ALTER TABLE tag ALTER COLUMN name DROP NOT NULL;  -- what was never DROP TABLE",
        "COMMENT ON TABLE tag IS 'no DROP TABLE here';",
        "CREATE FUNCTION f() RETURNS void LANGUAGE sql AS $$ DELETE FROM tag; DROP TABLE tag; $$;",
        "ALTER TABLE task DROP CONSTRAINT kinds; ALTER TABLE task ADD CONSTRAINT kinds CHECK (kind IN ('a', 'b'));",
        "DROP INDEX task_due; CREATE INDEX task_due ON task (location_id, due);",
        "DROP TRIGGER one ON tag; CREATE TRIGGER one AFTER DELETE ON tag EXECUTE FUNCTION f();",
        "-- Contract: unused since 0.2.0: tag.name\nALTER TABLE tag DROP COLUMN name;",
    ],
)
def test_what_adds_is_let_be(sql: str) -> None:
    """New tables, columns with a default, and what is made again under its name are additions."""
    assert takes_away(sql, "0.2.0") == []


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("ALTER TABLE repository DROP COLUMN name CASCADE", "repository.name is gone"),
        ("ALTER TABLE manifest ALTER COLUMN subject SET NOT NULL", "manifest.subject may not be NULL any more"),
        ("ALTER TABLE manifest ADD COLUMN colour text NOT NULL", "manifest.colour is new, may not be NULL"),
        ("ALTER TABLE dead_object ALTER COLUMN attempts DROP DEFAULT", "dead_object.attempts has no default any more"),
        ("ALTER TABLE dead_object ALTER COLUMN attempts TYPE bigint", "dead_object.attempts was integer and is bigint"),
        ("DROP FUNCTION collection_paused()", "collection_paused() is gone"),
        ("DROP TRIGGER manifest_awaited ON manifest", "the trigger manifest manifest_awaited is gone"),
        ("CREATE UNIQUE INDEX one ON manifest (media_hint)", ""),
        ("CREATE UNIQUE INDEX one ON manifest (artifact_type)", "manifest has a new rule: CREATE UNIQUE INDEX one"),
        ("ALTER TABLE manifest ADD CONSTRAINT short CHECK (length(digest) < 9)", "manifest has a new rule: CHECK"),
    ],
)
def test_what_a_node_would_miss_is_seen(database_uri: str, sql: str, said: str) -> None:
    """Each way in which a schema can fail the release before is named."""
    for migration in migrations():
        execute(database_uri, migration.sql)
    execute(database_uri, "ALTER TABLE manifest ADD COLUMN media_hint text")
    before = schema_of(database_uri)
    if not said:
        before = evolve(
            before, columns={at: column for at, column in before.columns.items() if at != ("manifest", "media_hint")}
        )
    execute(database_uri, sql)
    found = breaks(before, schema_of(database_uri))
    assert [line.text[: len(said)] for line in found] == ([said] if said else [])
