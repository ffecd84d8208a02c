"""Requests of the API take turns, so that nobody's questions keep the database from everybody else's pulls and pushes."""

from typing import Any

import httpx
import pytest
import trio
import trio.testing

from node.api import replication
from node.api.openapi import PREFIX
from node.gates import API_AT_ONCE
from node.records.closures import read_closure
from tests.api.test_rights import app_of
from tests.auth.people import ROLES, Person
from tests.auth.test_table import filled
from tests.registry.world import MakeWorld

WHERE = f"{PREFIX}/repository/private/app/manifest/v1/replication?location=us"


@pytest.mark.parametrize("asked", [WHERE, f"{PREFIX}/repository/private/app/tag"])
async def test_questions_take_turns(world: MakeWorld, monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    """However many questions one account has, few are asked at once; another account's is answered meanwhile."""
    (us,) = await filled(world)
    await us.node.access.open()
    go_on, out, most = trio.Event(), 0, 0
    reader, writer = ROLES["reader"], ROLES["writer"]
    assert isinstance(reader, Person)
    assert isinstance(writer, Person)
    database = type(us.registry.database)
    fetch = database.fetch

    async def slowly(self: Any, sql: str, *args: Any, **given: Any) -> Any:
        nonlocal out, most
        if "tag_is_immutable" not in sql or go_on.is_set():
            return await fetch(self, sql, *args, **given)
        out, most = out + 1, max(most, out + 1)
        await go_on.wait()
        return await fetch(self, sql, *args, **given)

    async def closure(*args: Any, **given: Any) -> Any:
        nonlocal out, most
        if not go_on.is_set():
            out, most = out + 1, max(most, out + 1)
            await go_on.wait()
        return await read_closure(*args, **given)

    monkeypatch.setattr(database, "fetch", slowly)
    monkeypatch.setattr(replication, "read_closure", closure)
    answers: list[int] = []
    async with httpx.AsyncClient(transport=app_of(us), base_url="http://registry.test") as http:

        async def ask(person: Person) -> None:
            answers.append((await http.get(asked, headers=person.basic)).status_code)

        assert (await http.get(f"{PREFIX}/me", headers=reader.basic)).status_code == 200
        assert (await http.get(f"{PREFIX}/me", headers=writer.basic)).status_code == 200
        async with trio.open_nursery() as nursery:
            for _ in range(3 * API_AT_ONCE):
                nursery.start_soon(ask, reader)
            await trio.testing.wait_all_tasks_blocked(0.5)
            assert most == API_AT_ONCE * 3 // 4
            assert (await http.get(f"{PREFIX}/repository/private/app", headers=writer.basic)).status_code == 200
            go_on.set()
    assert answers == [200] * (3 * API_AT_ONCE)
