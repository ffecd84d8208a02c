"""A registry's rows made by hand: namespaces, repositories, images and copies, for tests of what SQL decides on them."""

import hashlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager

from attrs import define, field

from engines.crossing import open_bridge
from node.records.locations import Changed, remove_location, set_state
from node.records.members import enrol_locations
from node.records.migrate import migrate
from node.records.policies import write_policy
from node.records.postgres import Database, open_database
from node.records.reconcile import PostgresRounds, ask_for_round, look_at_round
from replication.model import LocationState
from replication.policy import parse_policy
from replication.ports import Hint

LOCATIONS = ("us", "eu", "ap")


def digest_of(name: str) -> str:
    """Return a digest that belongs to a name."""
    return f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"


@define(eq=False)
class NoHints:
    """Hints that nobody hears; `sent` keeps them."""

    sent: list[Hint] = field(factory=list)

    def publish(self, *hints: Hint) -> None:
        self.sent += hints


@define(eq=False)
class World:
    """The rows. Blobs and manifests are called by names of the test's own."""

    database: Database
    blobs: dict[str, int] = field(factory=dict)
    manifests: dict[str, int] = field(factory=dict)

    async def one(self, sql: str, *args: object) -> int:
        row = await self.database.fetch_row(sql, *args)
        assert row is not None
        return int(next(iter(row.values())))

    async def repository(self, name: str) -> int:
        namespace = await self.one(
            "INSERT INTO namespace (name) VALUES ($1) ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING id",
            name.partition("/")[0],
        )
        return await self.one(
            "INSERT INTO repository (namespace_id, name) VALUES ($1, $2) "
            "ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING id",
            namespace,
            name,
        )

    async def blob(
        self, name: str, repositories: Iterable[str], placed: Mapping[str, str] | Sequence[str], size: int = 1000
    ) -> int:
        """Make a blob, link it, and place it: names of locations, or location to state."""
        blob = await self.one("INSERT INTO blob (digest, size) VALUES ($1, $2) RETURNING id", digest_of(name), size)
        self.blobs[name] = blob
        for repository in repositories:
            await self.link(name, repository)
        for at, state in placed.items() if isinstance(placed, Mapping) else [(at, "present") for at in placed]:
            await self.place(name, at, state)
        return blob

    async def link(self, blob: str, repository: str) -> None:
        await self.database.fetch(
            "INSERT INTO repository_blob (repository_id, blob_id) VALUES ($1, $2)",
            await self.repository(repository),
            self.blobs[blob],
        )

    async def place(self, blob: str, at: str, state: str = "present") -> None:
        await self.database.fetch(
            "INSERT INTO placement (blob_id, location_id, key, state) SELECT $1, id, $3, $4 FROM location WHERE name = $2",
            self.blobs[blob],
            at,
            f"{blob}.{at}",
            state,
        )

    async def owe(self, blob: str, at: str, *, key: str | None = None, leased: bool = False, failures: int = 0) -> None:
        await self.database.fetch(
            "INSERT INTO task (blob_id, location_id, size, key, lease, lease_until, attempts, last_error, failing_since) "
            "SELECT $1, id, 1000, $3, $4, now() + $5 * interval '1 hour', $6, 'it burns', now() - interval '1 minute' "
            "FROM location WHERE name = $2",
            self.blobs[blob],
            at,
            key,
            f"lease of {blob} {at}" if leased else None,
            1 if leased else None,
            failures,
        )

    async def strike(self, blob: str, at: str) -> None:
        await self._forget("task", blob, at)

    async def lose(self, blob: str, at: str) -> None:
        await self._forget("placement", blob, at)

    async def _forget(self, table: str, blob: str, at: str) -> None:
        await self.database.fetch(
            f"DELETE FROM {table} t USING location l WHERE l.id = t.location_id AND t.blob_id = $1 AND l.name = $2",  # noqa: S608 - our own names
            self.blobs[blob],
            at,
        )

    async def wish(self, blob: str, at: str, seconds: float) -> None:
        await self.database.fetch(
            "INSERT INTO wanted SELECT $1, id, now() + $3 * interval '1 second' FROM location WHERE name = $2",
            self.blobs[blob],
            at,
            seconds,
        )

    async def manifest(
        self,
        name: str,
        repository: str,
        *,
        blobs: Iterable[str] = (),
        children: Iterable[str] = (),
        subject: str | None = None,
        tag: str | None = None,
    ) -> int:
        """Make a manifest of blobs and children, linked in a repository, and perhaps tagged."""
        repository_id = await self.repository(repository)
        made = await self.one(
            "INSERT INTO manifest (digest, bytes, subject) VALUES ($1, 'x', $2) RETURNING id",
            digest_of(f"manifest {name}"),
            digest_of(f"manifest {subject}") if subject else None,
        )
        self.manifests[name] = made
        for blob in blobs:
            await self.database.fetch("INSERT INTO manifest_blob VALUES ($1, $2)", made, self.blobs[blob])
        for child in children:
            await self.database.fetch("INSERT INTO manifest_child VALUES ($1, $2)", made, self.manifests[child])
        await self.database.fetch(
            "INSERT INTO repository_manifest (repository_id, manifest_id, media_type) VALUES ($1, $2, 'x')",
            repository_id,
            made,
        )
        if tag is not None:
            await self.tag(name, repository, tag)
        return made

    async def tag(self, manifest: str, repository: str, tag: str) -> None:
        await self.database.fetch(
            "INSERT INTO tag (repository_id, name, manifest_id) VALUES ($1, $2, $3)",
            await self.repository(repository),
            tag,
            self.manifests[manifest],
        )

    async def policy(self, namespace: str, **rules: object) -> None:
        await write_policy(self.database, namespace, parse_policy(rules, LOCATIONS))

    async def state(self, at: str, state: LocationState) -> None:
        await self.database.fetch("UPDATE location SET state = $2 WHERE name = $1", at, state.value)

    async def state_of(self, at: str) -> LocationState:
        row = await self.database.fetch_row("SELECT state FROM location WHERE name = $1", at)
        assert row is not None
        return LocationState(row["state"])

    async def change(self, at: str, state: LocationState) -> Changed:
        return await set_state(self.database, at, state)

    async def remove(self, at: str) -> Changed:
        return await remove_location(self.database, at)

    def rounds(self) -> PostgresRounds:
        return PostgresRounds(self.database)

    async def ask_for_round(self) -> None:
        await ask_for_round(self.database)

    async def round_done(self) -> bool:
        return (await look_at_round(self.database)).completed_seconds is not None

    async def pass_time(self, seconds: float) -> None:
        """Let wishes, leased pages of the round and blobs that were taken for a trim grow old."""
        await self.database.fetch(
            "WITH pages AS (UPDATE reconcile_page SET lease_until = lease_until - $1 * interval '1 second'), "
            "trims AS (UPDATE trim_lease SET until = until - $1 * interval '1 second') "
            "UPDATE wanted SET until = until - $1 * interval '1 second'",
            seconds,
        )

    async def placed(self, blob: str) -> dict[str, str]:
        rows = await self.database.fetch(
            "SELECT l.name, p.state FROM placement p JOIN location l ON l.id = p.location_id WHERE p.blob_id = $1",
            self.blobs[blob],
        )
        return {row["name"]: row["state"] for row in rows}

    async def tasks(self, blob: str) -> set[str]:
        rows = await self.database.fetch(
            "SELECT l.name FROM task t JOIN location l ON l.id = t.location_id WHERE t.blob_id = $1", self.blobs[blob]
        )
        return {row["name"] for row in rows}

    async def dead(self) -> set[str]:
        return {row["key"] for row in await self.database.fetch("SELECT key FROM dead_object")}


@asynccontextmanager
async def open_world(uri: str, defaults: Sequence[str] = ("us", "eu")) -> AsyncIterator[World]:
    """Open a fresh database with the locations us, eu and ap, of which `defaults` are the default ones."""
    async with open_bridge(), open_database(uri) as database:
        await migrate(database)
        await enrol_locations(database, list(LOCATIONS), list(defaults))
        yield World(database)
