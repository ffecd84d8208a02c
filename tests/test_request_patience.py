"""What a request waits for the database in all is bounded, however many statements it needs."""

import gc
from urllib.parse import urlsplit

import pytest
import trio

from engines.crossing import Trouble, open_bridge
from engines.trace import LATELY, Trace, tracing
from node.records import postgres
from node.records.postgres import Database, DatabaseUnavailable, open_database
from tests.busy import measured
from tests.faults import FaultProxy
from tests.registry.world import until

_EACH, _ALL = 0.4, 3.1
"""Seconds that every answer takes, and that a request waits for all."""


async def _ask_often(database: Database, answers: list[object]) -> None:
    while len(answers) < 10:
        answers.append(await database.fetch("SELECT 1"))


async def test_slow_statements_add_up(database_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request whose statements are answered one as late as the other is told so in the time that it has for all of them.

    Other requests, and what works for none, are not concerned.
    """
    monkeypatch.setattr(postgres, "_REQUEST_SECONDS", _ALL)
    monkeypatch.setattr(postgres, "_SLOW_SECONDS", _EACH / 2)
    port = urlsplit(database_uri).port or 5432
    async with open_bridge(), trio.open_nursery() as nursery:
        proxy: FaultProxy = await nursery.start(FaultProxy("127.0.0.1", port).serve)
        uri = database_uri.replace(f":{port}/", f":{proxy.port}/")
        async with open_database(uri, most=1) as database:
            await database.fetch("SELECT 1")
            proxy.delay = _EACH
            with tracing(Trace("one")), measured() as slow:
                began, answers = trio.current_time(), list[object]()
                with pytest.raises(DatabaseUnavailable):
                    await _ask_often(database, answers)
                assert len(answers) <= _ALL / _EACH
                # What a busy machine adds, and what a statement that is cut off takes to unwind.
                assert trio.current_time() - began < _ALL + 3 * max(slow)
            for trace in (None, Trace("two")):
                if trace is None:
                    assert await database.fetch("SELECT 1")
                else:
                    with tracing(trace):
                        assert await database.fetch("SELECT 1")
            proxy.delay = 0.0
        nursery.cancel_scope.cancel()


async def test_old_waits_are_forgotten(autojump_clock: object) -> None:
    """A request that goes on for hours is not told what it waited for at its beginning."""
    trace = Trace("long")
    trace.note_slow(5.0)
    await trio.sleep(LATELY / 2)
    trace.note_slow(3.0)
    assert trace.slow_lately() == 8.0
    await trio.sleep(LATELY / 2 + 1)
    assert trace.slow_lately() == 3.0


async def test_who_stops_waiting_leaves_no_error_behind(database_uri: str) -> None:
    """A caller that is cancelled while its connection is on its way back leaves nothing that nobody hears of."""
    troubles: list[Trouble] = []
    port = urlsplit(database_uri).port or 5432
    async with open_bridge(troubles.append), trio.open_nursery() as nursery:
        proxy: FaultProxy = await nursery.start(FaultProxy("127.0.0.1", port).serve)
        async with open_database(database_uri.replace(f":{port}/", f":{proxy.port}/"), most=1) as database:
            await database.fetch("SELECT 1")
            proxy.break_("hang")
            # The statement has run out of time by then, and waits for its connection to say that it stopped.
            with trio.move_on_after(0.5):
                await database.fetch("SELECT 1", deadline=0.2)

            async def closed() -> bool:
                return bool(database._pool._pool.get_size() == 0)

            await until(closed, 10)
        nursery.cancel_scope.cancel()
    gc.collect()
    assert troubles == []
