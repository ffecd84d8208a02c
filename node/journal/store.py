"""Reads whole small objects of a store, and its keys in pages."""

from collections.abc import AsyncGenerator, Sequence

from engines.contract import Engine


async def read_object(engine: Engine, key: str) -> bytes:
    """Return a whole object that fits in memory. Raises EngineError."""
    facts = await engine.head(key)
    return await engine.read(key, 0, facts.size)


async def key_pages(engine: Engine, prefix: str) -> AsyncGenerator[Sequence[str], None]:
    """Yield the keys that start with `prefix` in pages. Raises EngineError."""
    after: str | None = None
    while True:
        page = await engine.list_keys(prefix, after)
        if page.keys:
            yield page.keys
        if page.after is None:
            return
        after = page.after
