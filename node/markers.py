"""Marker objects: a store repeats its location's uuid, so that another bucket under an old name is noticed and refused, by name."""

from collections.abc import Mapping

import structlog
import trio

from engines.contract import Engine, EngineError, ObjectMissing
from node.records.members import LocationRow
from replication.watcher import ProbeKeys, probe_keys

_log = structlog.get_logger("antipode.locations")

_RETRY = 5.0
_MOST = 4096


class NotOurs(Exception):
    """A store is not the one whose objects the records mean; the text says what it bears."""


async def read_marker(engine: Engine) -> bytes | None:
    """Return what a store bears, None where that is nothing. Raises EngineError."""
    return await _read(engine, probe_keys(engine.prefix, "-").marker)


async def check_marker(engine: Engine, wanted: str) -> None:
    """Refuse to conclude anything from a store that does not bear this marker. Raises NotOurs, EngineError."""
    found = await read_marker(engine)
    if found is None:
        raise NotOurs("its store holds no marker: is it another bucket, or was it emptied?")
    if found != wanted.encode():
        raise NotOurs(f"its store bears the marker of another location, not {wanted!r}")


async def keep_markers(
    engines: Mapping[str, Engine], rows: Mapping[str, LocationRow], keys: Mapping[str, ProbeKeys]
) -> None:
    """See to it that every store bears its marker: written into a new one, never into one that should have it already.

    Ends when every store has been seen to; one that is out of reach is asked again until it answers.
    """
    async with trio.open_nursery() as nursery:
        for name, engine in engines.items():
            nursery.start_soon(_keep, name, engine, rows[name], keys[name].marker)


async def _keep(name: str, engine: Engine, row: LocationRow, key: str) -> None:
    wanted = row.marker.encode()
    while True:
        try:
            found = await _read(engine, key)
            if found is None and row.empty:
                await engine.put(key, wanted)
                _log.info("location is new: marked", location=name)
                return
        except EngineError as error:
            _log.warning("location not marked yet: its store does not answer", location=name, reason=str(error))
            await trio.sleep(_RETRY)
            continue
        if found == wanted:
            return
        if found is None:
            reason = "it holds no marker although blobs were placed there: is it another bucket, or was it emptied?"
        else:
            reason = f"it bears the marker {found[:40].decode('ascii', 'replace')!r}, this location's is {row.marker!r}"
        # The watcher says the same at every probe and keeps the location down; nothing is read from or written to it for long.
        _log.error("location refused: its store belongs to another location", location=name, reason=reason)
        return


async def _read(engine: Engine, key: str) -> bytes | None:
    try:
        facts = await engine.head(key)
        return await engine.read(key, 0, min(facts.size, _MOST))
    except ObjectMissing:
        return None
