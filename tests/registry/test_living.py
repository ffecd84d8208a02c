"""Who is waited for when something is deleted: the nodes that live now, not those that the last heartbeat told of."""

from uuid import uuid4

from node.records.ledger import PostgresLedger
from node.records.members import Membership, living_nodes
from node.records.postgres import Database


async def test_a_node_counts_from_its_first_heartbeat_until_its_silence(database: Database) -> None:
    """Before that it serves nobody; after ten seconds of silence nobody waits for it."""
    us, eu = (Membership(uuid4(), (name,), (name,), "test") for name in ("us", "eu"))
    assert not (await PostgresLedger(database, us).heartbeat()).nodes
    assert await living_nodes(database, us.id, 10) == frozenset()
    await PostgresLedger(database, eu).heartbeat()
    # The us node's last heartbeat could not tell of it.
    assert await living_nodes(database, us.id, 10) == {str(eu.id)}
    assert await living_nodes(database, eu.id, 10) == {str(us.id)}
    await database.fetch("UPDATE node SET seen_at = now() - interval '11 seconds' WHERE id = $1", eu.id)
    assert await living_nodes(database, us.id, 10) == frozenset()
