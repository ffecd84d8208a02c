"""Registry tokens that were tampered with, signed by others, meant for others, too old or too new; and the keys' rotation."""

import base64
import json
from typing import Any
from uuid import UUID

import jwt
import pytest
from attrs import define
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from node.auth.keyring import Keyring
from node.auth.model import Action, Grant, Identity, Kind
from node.auth.rotation import AHEAD, SIGNS, next_key
from node.auth.sealing import Sealed, Sealer
from node.auth.tokens import LEEWAY, BadToken, Renewal, Tokens
from node.records.postgres import Database
from node.records.signing_keys import KeyRow, read_keys

SERVICE = "registry.test"
ALICE = Identity("alice", Kind.USER)
GRANTS = {"alice/app": Grant(frozenset({Action.PULL}))}
KEY = "a secret key for tests"


@define
class Clock:
    now: float = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@define(eq=False)
class Issuer:
    """A node's tokens, and the clocks that it reads."""

    tokens: Tokens
    keyring: Keyring
    clock: Clock
    ticks: Clock


async def issuer(database: Database, secret: str = KEY) -> Issuer:
    ticks, clock = Clock(0.0), Clock()
    keyring = Keyring(database, Sealer(secret), 3600.0, ticks)
    await keyring.refresh()
    return Issuer(Tokens(keyring, SERVICE, clock), keyring, clock, ticks)


@pytest.fixture
async def node(database: Database) -> Issuer:
    return await issuer(database)


def parts(token: str) -> tuple[dict[str, Any], dict[str, Any], str]:
    head, body, signature = token.split(".")
    return decode(head), decode(body), signature


def decode(part: str) -> dict[str, Any]:
    return dict(json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))))


def encode(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


async def refused(issuer: Issuer, token: str) -> str:
    with pytest.raises(BadToken) as caught:
        await issuer.tokens.verify(token)
    return str(caught.value)


async def test_a_token_says_what_it_was_issued_for(node: Issuer, database: Database) -> None:
    """Any node that has the keys checks a token, and reads in it what was granted."""
    token = node.tokens.issue(ALICE, {**GRANTS, "x/y": Grant()}, 7, 60, catalog=True)
    other = await issuer(database)
    for one in (node, other, other):
        identity = await one.tokens.verify(token)
        assert (identity.name, identity.kind, identity.epoch, identity.catalog) == ("alice", Kind.USER, 7, True)
        assert identity.grants == {**GRANTS, "x/y": Grant()}
        assert not identity.superuser


async def test_times(node: Issuer) -> None:
    """A token ends with its lifetime; clocks may differ by half a minute and no more."""
    token = node.tokens.issue(ALICE, GRANTS, 0, 60, catalog=False)
    node.clock.now += 60 + LEEWAY - 1
    assert await node.tokens.verify(token)
    node.clock.now += 1
    assert "expired" in await refused(node, token)
    node.clock.now -= 60 + 2 * LEEWAY
    fresh = node.tokens.issue(ALICE, GRANTS, 0, 60, catalog=False)
    node.clock.now -= LEEWAY
    assert await node.tokens.verify(fresh)
    late = node.tokens.issue(ALICE, GRANTS, 1, 60, catalog=False)
    node.clock.now -= LEEWAY + 1
    assert "future" in await refused(node, late)


async def test_forgeries(node: Issuer, database: Database) -> None:
    """Nothing but our own signature by our own algorithm counts, whatever a token says about itself."""
    token = node.tokens.issue(ALICE, GRANTS, 0, 60, catalog=False)
    head, body, signature = parts(token)
    (row,) = await read_keys(database)
    more = {**body, "access": [{"type": "repository", "name": "bob/app", "actions": ["push"]}]}
    forged = [
        f"{encode(head)}.{encode(more)}.{signature}",
        f"{encode({**head, 'alg': 'none'})}.{encode(more)}.",
        f"{encode({'alg': 'none', 'typ': 'JWT'})}.{encode(more)}.",
        f"{encode({**head, 'alg': 'None'})}.{encode(more)}.{signature}",
        # The public key as the secret of a symmetric algorithm: key confusion.
        jwt.encode(more, row.public, algorithm="HS256", headers={"kid": row.id}),
        jwt.encode(more, ec.generate_private_key(ec.SECP256R1()), algorithm="ES256", headers={"kid": row.id}),
        jwt.encode(more, Ed25519PrivateKey.generate(), algorithm="EdDSA", headers={"kid": row.id}),
        jwt.encode(more, Ed25519PrivateKey.generate(), algorithm="EdDSA", headers={"kid": "other"}),
        jwt.encode(more, Ed25519PrivateKey.generate(), algorithm="EdDSA", headers={"kid": "../../etc/passwd"}),
        jwt.encode(more, Ed25519PrivateKey.generate(), algorithm="EdDSA"),
        f"{encode({**head, 'jwk': {'kty': 'OKP'}, 'jku': 'http://127.0.0.1/'})}.{encode(more)}.{signature}",
        f"{encode({**head, 'crit': ['x'], 'x': 1})}.{encode(body)}.{signature}",
        token[:-4] + ("AAAA" if not token.endswith("AAAA") else "BBBB"),
        token + "A" * 8,
        "",
        ".",
        "..",
        "a.b.c",
        "é" * 10,
    ]
    for one in forged:
        await refused(node, one)
    assert await node.tokens.verify(token)


async def signed(node: Issuer, **changes: object) -> str:
    """Return a token with our own signature and other claims."""
    _, body, _ = parts(node.tokens.issue(ALICE, GRANTS, 0, 60, catalog=False))
    signing = node.keyring.signing()
    assert signing is not None
    claims = {name: value for name, value in {**body, **changes}.items() if value is not None}
    return jwt.encode(claims, signing[1], algorithm="EdDSA", headers={"kid": signing[0]})


async def test_claims(node: Issuer) -> None:
    """A token that is not meant for this registry, or lacks what every token has, proves nothing."""
    assert await node.tokens.verify(await signed(node))
    wrong: list[dict[str, object]] = [
        {"aud": "other.test"},
        {"aud": ["other.test", "third.test"]},
        {"aud": f"{SERVICE}/v2/auth"},
        {"iss": "other.test"},
        {"aud": None},
        {"exp": None},
        {"iat": None},
        {"sub": None},
        {"access": None},
        {"epoch": None},
        {"exp": "soon"},
        {"exp": 0},
        {"kind": "king"},
        {"kind": 5},
        {"epoch": "x"},
        {"access": "everything"},
    ]
    for changes in wrong:
        await refused(node, await signed(node, **changes))


async def test_the_two_kinds(node: Issuer) -> None:
    """What only buys tokens is none, and the other way round."""
    for renewal in (Renewal("alice", 3, None, 7), Renewal("alice", 3, UUID(int=1))):
        refresh = node.tokens.issue_refresh(renewal, 3600)
        assert await node.tokens.verify_refresh(refresh) == renewal
    await refused(node, refresh)
    with pytest.raises(BadToken):
        await node.tokens.verify_refresh(node.tokens.issue(ALICE, GRANTS, 0, 60, catalog=False))


async def test_rotation(node: Issuer, database: Database) -> None:
    """A new key is known to every node before it signs, and the old one counts until its tokens have ended."""
    other = await issuer(database)
    first = node.keyring.signing()
    assert first is not None
    await database.fetch(
        "UPDATE signing_key SET signs_until = now() + interval '1 hour', verifies_until = now() + interval '3 hours'"
    )
    await node.keyring.refresh()
    await other.keyring.refresh()
    assert len(await read_keys(database)) == 2, "the second is published while the first signs"
    token = node.tokens.issue(ALICE, GRANTS, 0, 60, catalog=False)
    assert parts(token)[0]["kid"] == first[0]
    for one in (node, other):
        one.ticks.now += 3700
    second = node.tokens.issue(ALICE, GRANTS, 0, 60, catalog=False)
    assert parts(second)[0]["kid"] != first[0]
    before = database.statistics().trips
    assert await other.tokens.verify(second)
    assert await other.tokens.verify(token)
    assert database.statistics().trips == before, "no look at the database"


async def test_revoked_keys(node: Issuer, database: Database) -> None:
    """When keys are revoked what they signed is void on every node that has heard of it, also what it had seen."""
    other = await issuer(database)
    token = node.tokens.issue(ALICE, GRANTS, 0, 60, catalog=False)
    assert await other.tokens.verify(token)
    await node.keyring.rotate(revoke=True)
    await other.keyring.refresh()
    await refused(node, token)
    await refused(other, token)
    fresh = node.tokens.issue(ALICE, GRANTS, 0, 60, catalog=False)
    assert await other.tokens.verify(fresh)


async def test_unknown_keys_cost_little(node: Issuer, database: Database) -> None:
    """Tokens that name made-up keys make a node look at the database once in a while, not each time."""
    node.ticks.now += 100
    before = database.statistics().trips
    for number in range(50):
        await refused(
            node, jwt.encode({}, Ed25519PrivateKey.generate(), algorithm="EdDSA", headers={"kid": str(number)})
        )
    assert database.statistics().trips - before <= 1


async def test_another_secret_key(node: Issuer, database: Database) -> None:
    """A node with another DATABASE_SECRET_KEY makes a key of its own, and everybody checks with all of them."""
    (row,) = await read_keys(database)
    assert row.public not in row.private.encode()
    other = await issuer(database, "another secret key altogether")
    token = other.tokens.issue(ALICE, GRANTS, 0, 60, catalog=False)
    assert await other.tokens.verify(node.tokens.issue(ALICE, GRANTS, 0, 60, catalog=False))
    node.ticks.now += 100
    assert await node.tokens.verify(token)


def test_sealing() -> None:
    """What is sealed is opened with the same key in the same place only."""
    sealer = Sealer(KEY)
    kept = sealer.seal(b"private", "one")
    assert sealer.unseal(kept, "one") == b"private"
    assert sealer.seal(b"private", "one") != kept
    for opener, context, value in (
        (Sealer("x" * 20), "one", kept),
        (sealer, "two", kept),
        (sealer, "one", kept[:-6]),
        (sealer, "one", ""),
    ):
        with pytest.raises(Sealed):
            opener.unseal(value, context)


@given(st.lists(st.floats(0, 4 * SIGNS), min_size=0, max_size=5), st.floats(60, 10 * SIGNS))
def test_there_always_is_a_key(steps: list[float], longest: float) -> None:
    """However seldom nodes look, whoever looks finds a key that signs, and every key outlives the tokens that it signs."""
    rows: list[KeyRow] = []
    now = 0.0
    for step in [0.0, *steps]:
        now += step
        at_now = [
            KeyRow(row.id, b"", "", row.signs_from - now, row.signs_until - now, row.verifies_until - now)
            for row in rows
        ]
        span = next_key(at_now, longest)
        if span is not None:
            assert span.verifies_until >= span.signs_until + longest
            rows.append(
                KeyRow(
                    str(len(rows)), b"", "", now + span.signs_from, now + span.signs_until, now + span.verifies_until
                )
            )
        assert any(row.signs_from <= now < row.signs_until for row in rows)
        assert any(row.signs_until > now + AHEAD for row in rows)
