"""Two stores between which blobs are copied, what is put into the one, and the node that knows of it."""

import hashlib
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random
from uuid import uuid4

import trio
from attrs import define, evolve, field, frozen

from engines import parse_engine
from engines.contract import Engine, EngineError, Part
from engines.crossing import open_bridge
from node.assembly import assemble
from node.config.settings import LocationSettings, Settings
from node.cycles import spare_the_collector
from node.hint_hub import Hub
from node.markers import keep_markers
from node.records.members import Membership, enrol_locations
from node.records.migrate import migrate
from node.records.postgres import open_database
from node.running import Node
from replication.macs import PieceProofs, ProofMaker
from replication.watcher import probe_keys
from replication.workers import each
from tests.services import Store, all_stores

from .delay import delayed_apart
from .sizes import MIB

ROUND_TRIP = 0.1
"""Seconds between the stores, where that is asked for."""
WINDOW = 3 << 20
"""Bytes under way there on one connection: what Linux' default receive buffer of at most 6 MiB lets through."""
AT_ONCE = 8
"""Blobs under way at once, by whomever: what a node does by default."""
_FILLED = 16 * MIB
"""Larger blobs are put there in parts of this size."""


@frozen
class Source:
    """An object to be copied, with what the database knows of it."""

    key: str
    digest: str
    size: int
    proofs: PieceProofs


@define(eq=False)
class Ground:
    """A node over the two stores, not serving; `prefix` is the folder in both buckets."""

    node: Node
    stores: Mapping[str, Store]
    gateways: tuple[int, ...]
    """The ports where the stores themselves listen."""
    prefix: str
    sources: dict[str, list[Source]] = field(factory=dict)

    @property
    def us(self) -> Engine:
        """The store that everything is copied from."""
        return self.node.engines["us"]

    @property
    def eu(self) -> Engine:
        """The store that everything is copied to."""
        return self.node.engines["eu"]


@asynccontextmanager
async def open_ground(uri: str, *, tls: bool, far: bool = False) -> AsyncIterator[Ground]:
    """Open an empty database and a folder of our own in both stores, emptied afterwards. `far` puts an ocean before the source."""
    found, path = all_stores(), f"/bench-{secrets.token_hex(4)}"
    stores = {name: found[f"{name}-tls" if tls else name] for name in ("us", "eu")}
    gateways = tuple(store.port for store in stores.values())
    async with AsyncExitStack() as stack:
        if far:
            port = stack.enter_context(delayed_apart(stores["us"].port, ROUND_TRIP, WINDOW))
            stores["us"] = evolve(stores["us"], endpoint=f"{'https' if tls else 'http'}://127.0.0.1:{port}")
        await stack.enter_async_context(open_bridge())
        database = await stack.enter_async_context(open_database(uri))
        await migrate(database)
        specs = {name: parse_engine(*stores[name].configuration(path)) for name in ("us", "eu")}
        settings = Settings(
            server_hostname="bench",
            database_uri=uri,
            locations={name: LocationSettings(name, spec) for name, spec in specs.items()},
            preference=("eu", "us"),
            default_locations=("us", "eu"),
            replicate=True,
            open_registry=True,
        )
        rows = await enrol_locations(database, ["us", "eu"], ("us", "eu"))
        engines = {name: await stack.enter_async_context(spec.open()) for name, spec in specs.items()}
        member = Membership(uuid4(), settings.preference, settings.default_locations, "bench")
        node = assemble(settings, database, Hub("bench"), engines, rows, member)
        await node.mac_keyring.refresh()
        await keep_markers(
            engines, rows, {name: probe_keys(engine.prefix, "bench") for name, engine in engines.items()}
        )
        try:
            async with trio.open_nursery() as nursery:
                # Into a store of which nothing is known a node makes one copy at a time.
                await nursery.start(node.watcher.run)
                await node.watcher.first_round()
                # As every node does when it is up.
                spare_the_collector()
                yield Ground(node, stores, gateways, path.strip("/"))
                nursery.cancel_scope.cancel()
        finally:
            for name in ("us", "eu"):
                await trio.to_thread.run_sync(stores[name].empty, path)


async def fill(ground: Ground, label: str, count: int, size: int) -> None:
    """Put the objects of one set, of `size` bytes each, into the source store and into the records."""
    found: dict[int, Source] = {}

    async def put(at: int) -> None:
        found[at] = await _put(ground, f"{ground.us.prefix}{label.replace(' ', '-')}/{at}", f"{label} {at}", size)

    await each(range(count), AT_ONCE if size <= _FILLED else 1, put, (EngineError,))
    ground.sources[label] = sources = [found[at] for at in range(count)]
    await ground.node.database.fetch(
        "WITH b AS (INSERT INTO blob (digest, size, pieces, macs) "
        "SELECT * FROM unnest($1::text[], $2::bigint[], $3::bytea[], $5::bytea[]) "
        "RETURNING id, digest) INSERT INTO placement (blob_id, location_id, key) SELECT b.id, l.id, k.key "
        "FROM b JOIN unnest($1::text[], $4::text[]) k (digest, key) USING (digest), location l WHERE l.name = 'us'",
        [source.digest for source in sources],
        [source.size for source in sources],
        [source.proofs.pieces for source in sources],
        [source.key for source in sources],
        [source.proofs.macs for source in sources],
    )


async def _put(ground: Ground, key: str, seed: str, size: int) -> Source:
    random, whole, parts = Random(seed), hashlib.sha256(), list[Part]()  # noqa: S311 - filler, the same every time
    maker = ProofMaker(ground.node.mac_keyring.keys.current)
    if size <= _FILLED:
        data = random.randbytes(size)
        await ground.us.put(key, data)
        maker.add(data)
        return Source(key, "sha256:" + hashlib.sha256(data).hexdigest(), size, maker.proofs())
    upload = await ground.us.begin_parts(key)
    for start in range(0, size, _FILLED):
        data = random.randbytes(min(_FILLED, size - start))
        whole.update(data)
        maker.add(data)
        parts.append(await ground.us.put_part(key, upload, len(parts) + 1, data))
    await ground.us.finish_parts(key, upload, parts)
    return Source(key, "sha256:" + whole.hexdigest(), size, maker.proofs())


async def clean(ground: Ground) -> None:
    """Take away what a round has copied, so that the next one begins in the same place."""
    await ground.node.database.fetch(
        "DELETE FROM placement p USING location l WHERE l.id = p.location_id AND l.name = 'eu'"
    )
    for folder in ("sha256", "serial", "rclone", "s5cmd"):
        await trio.to_thread.run_sync(ground.stores["eu"].empty, f"/{ground.prefix}/{folder}")
