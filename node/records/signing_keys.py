"""The keys that sign registry tokens, shared by all nodes. One statement each. Times are seconds from now."""

from collections.abc import Sequence

from attrs import field, frozen

from node.records.postgres import Database


@frozen
class KeyRow:
    """A key: its public half as 32 bytes, its private half encrypted. A time in the past is negative."""

    id: str
    public: bytes
    private: str = field(repr=False)
    signs_from: float
    signs_until: float
    verifies_until: float


async def read_keys(database: Database) -> Sequence[KeyRow]:
    """Return the keys that still verify, the oldest first."""
    rows = await database.fetch(
        """
        SELECT id, public, private, extract(epoch FROM signs_from - now())::float8 AS signs_from,
            extract(epoch FROM signs_until - now())::float8 AS signs_until,
            extract(epoch FROM verifies_until - now())::float8 AS verifies_until
        FROM signing_key WHERE verifies_until > now() ORDER BY signs_from, id
        """
    )
    return [KeyRow(**row) for row in rows]


async def add_key(database: Database, key: KeyRow) -> None:
    """Publish a key."""
    await database.fetch(
        """
        INSERT INTO signing_key (id, public, private, signs_from, signs_until, verifies_until)
        SELECT $1, $2, $3, now() + $4::float8 * interval '1 second', now() + $5::float8 * interval '1 second',
            now() + $6::float8 * interval '1 second'
        """,
        key.id,
        key.public,
        key.private,
        key.signs_from,
        key.signs_until,
        key.verifies_until,
    )


async def drop_keys(database: Database, *, all_but: str | None = None) -> int:
    """Delete the keys that verify nothing any more; with `all_but` all others than that, whose tokens are void then."""
    rows = await database.fetch(
        "DELETE FROM signing_key WHERE CASE WHEN $1::text IS NULL THEN verifies_until < now() ELSE id <> $1 END RETURNING id",
        all_but,
    )
    return len(rows)
