"""Several repositories have the same manifest: each has an object of its own in every store, which says whose it is."""

from node.journal.facts import decode_manifest
from node.journal.store import read_object
from node.journal.writer import JournalSettings, JournalWriter
from node.records.journal import seal
from node.records.manifests import delete_manifest
from tests.faulty_engine import Refuse
from tests.recovery.test_journal import flush, manifests
from tests.recovery.test_rescue import lose_the_database, pull, run
from tests.registry.world import MakeWorld, Region

_REPOSITORIES = [f"team/r{n}" for n in range(8)]


async def owners(us: Region, location: str, keys: list[str]) -> dict[str, str]:
    """Return of which repository objects say that they are, by key."""
    engine = us.engines[location].inner
    return {key: decode_manifest(await read_object(engine, key)).repository for key in keys}


async def test_each_object_is_its_own_repositorys(world: MakeWorld) -> None:
    """After a rescue, too; one whose repository has let the manifest go is deleted, and takes no other's place."""
    (us,) = await world("us eu", proxy_storage=True)
    for name in _REPOSITORIES:
        digest = await us.push_image(name, "v1", b"one")
    await flush(us)
    for name in _REPOSITORIES[:3]:
        await delete_manifest(us.registry.database, name, digest)
    await flush(us)
    await lose_the_database(us)
    report, findings = await run(us)
    assert (report.unreachable, report.replayed.missing) == ((), 0), findings
    for location in us.engines:
        rows = await us.rows(
            "SELECT o.key, r.name FROM manifest_object o JOIN location l ON l.id = o.location_id "
            "JOIN repository r ON r.id = o.repository_id WHERE l.name = $1",
            location,
        )
        recorded = {row["key"]: row["name"] for row in rows}
        said = await owners(us, location, await manifests(us, location))
        assert recorded == {key: name for key, name in said.items() if name in _REPOSITORIES[3:]}
        dead = await us.rows(
            "SELECT d.key FROM dead_object d JOIN location l ON l.id = d.location_id WHERE l.name = $1", location
        )
        assert {row["key"] for row in dead} >= set(said) - set(recorded)


async def test_a_push_that_no_journal_knows_is_not_taken_for_another_repositorys(world: MakeWorld) -> None:
    """Its object is there, and that of the other repository is gone: the push comes back all the same."""
    (us,) = await world("us", proxy_storage=True)
    engine = us.engines["us"].inner
    await us.push_image("a/b", "v1", b"one")
    await flush(us)
    (known,) = await manifests(us, "us")
    digest = await us.push_image("c/d", "v1", b"one")
    pushed = await pull(us, "c/d", digest)
    await seal(us.registry.database)
    # The manifests are written first.
    us.engines["us"].plan("put", Refuse(), where="journal/")
    assert not await JournalWriter(us.registry.database, us.engines, JournalSettings()).write("us")
    us.engines["us"].clear()
    await engine.delete(known)
    assert list((await owners(us, "us", await manifests(us, "us"))).values()) == ["c/d"]
    await lose_the_database(us)
    await run(us)
    assert await pull(us, "c/d", digest) == pushed
