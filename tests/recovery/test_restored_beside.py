"""What the journals know comes back whole, whatever comes back beside it, and however a store gives it."""

from typing import Any

import pytest
import trio

from node.journal import reader
from node.journal.replay import replay
from node.push.reading import OCI_INDEX, OCI_MANIFEST
from node.records.history import set_tag_expiration, tag_expiration
from node.records.journal import seal
from node.records.manifests import ManifestFacts
from node.records.postgres import Database
from node.records.replay import restore_manifest
from tests.collection.held import held_transaction
from tests.faulty_engine import Wrong
from tests.recovery.test_journal import flush, writer
from tests.recovery.test_rescue import lose_the_database, run, tags
from tests.registry.world import MakeWorld, index


async def test_an_index_that_comes_back_beside_its_child_has_it(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several are brought back at once: the child when the index is not committed yet, so that neither sees the other."""
    (us,) = await world("us", proxy_storage=True)
    child = await us.push_image("a/b", "child", b"layer")
    named = {"mediaType": OCI_MANIFEST, "digest": child, "size": 1}
    await us.push_manifest("a/b", "index", index([named], OCI_INDEX))
    await flush(us)
    children = "SELECT count(*) AS n FROM manifest_child"
    assert [row["n"] for row in await us.rows(children)] == [1]
    for table in ("manifest_child", "tag", "tag_history", "repository_manifest", "manifest", "journal_entry"):
        await us.rows(f"DELETE FROM {table}")  # noqa: S608  # our names
    index_made, child_made = trio.Event(), trio.Event()

    async def beside(database: Database, repository: str, library: str, facts: ManifestFacts, *rest: Any) -> None:
        with trio.fail_after(20):
            if facts.children:
                async with held_transaction(us.registry.settings.database_uri) as held:
                    await restore_manifest(held, repository, library, facts, *rest)
                    index_made.set()
                    await child_made.wait()
            else:
                await index_made.wait()
                await restore_manifest(database, repository, library, facts, *rest)
                child_made.set()

    monkeypatch.setattr("node.journal.replay.restore_manifest", beside)
    await replay(us.registry.database, us.engines, "library", lambda _: None)
    assert [row["n"] for row in await us.rows(children)] == [1]


async def test_a_journal_that_is_read_wrong_once_is_read_again(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store may send wrong bytes and have the right ones: what it knows is not given up, by a rescue or by the writer."""
    monkeypatch.setattr(reader, "_PAUSE", 0.001)
    (us,) = await world("us", proxy_storage=True)
    await flush(us)
    for n in range(3):
        await us.push_image("a/b", f"v{n}", str(n).encode())
        await seal(us.registry.database)
        assert await writer(us).write("us")
    before = await tags(us)
    await us.rows("UPDATE journal_object SET hour = hour - interval '2 hours' WHERE kind = 'batch'")
    # After that of the marker.
    us.engines["us"].plan("read", Wrong(20), call=1, where="journal/")
    assert await writer(us).write("us")
    us.engines["us"].clear()
    for call in range(6):
        await lose_the_database(us)
        us.engines["us"].plan("read", Wrong(20), call=call, where="journal/")
        _, findings = await run(us)
        us.engines["us"].clear()
        assert not [one for one in findings if one.kind == "damaged"], (call, findings)
        assert await tags(us) == before, call


async def test_a_window_that_was_taken_back_is_not_there_again(world: MakeWorld) -> None:
    """A namespace has the usual one, as the journals say, and keeps its history as long."""
    (us,) = await world("us", proxy_storage=True)
    database = us.registry.database
    await us.push_image("a/b", "v1", b"one")
    await set_tag_expiration(database, "a", 60.0)
    await flush(us)
    await set_tag_expiration(database, "a", None)
    await flush(us)
    await set_tag_expiration(database, "a", 60.0)
    await database.fetch("DELETE FROM journal_entry")
    await replay(database, us.engines, "library", lambda _: None)
    assert await tag_expiration(database, "a") == (True, None)
