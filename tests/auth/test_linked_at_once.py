"""One person of an identity provider who logs in on two nodes at the same moment, and whom they call by two names."""

import trio

from node.records.accounts import find_account
from node.records.auditlog import Filter, Line, read_lines
from node.records.federated_logins import create_linked, find_linked
from node.records.postgres import Database
from tests.collection.held import held_transaction, wait_until_one_waits_for

PERSON = ("https://login.example.com", "123")


async def test_a_person_gets_one_account(database: Database, migrated_uri: str) -> None:
    """Who comes second makes nothing, and writes no line: the person has an account meanwhile. They were told of an error."""
    second = []

    async def make() -> None:
        line = Line("createUser", "annie")
        second.append(await create_linked(database, "annie", None, *PERSON, line))

    async with trio.open_nursery() as nursery, held_transaction(migrated_uri) as first:
        made = await create_linked(first, "ann", None, *PERSON, Line("createUser", "ann"))
        nursery.start_soon(make)
        await wait_until_one_waits_for(database, first)
    assert second == [None]
    assert made is not None
    assert await find_linked(database, *PERSON) == made
    assert await find_account(database, "annie") is None
    assert [kept.line.actor for kept in await read_lines(database, Filter(), None, 10)] == ["ann"]
