"""Robots that show a token of an identity provider instead of a secret; the provider is a real one, over TLS."""

import json
import re
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from node.auth.directory import DirectoryUnavailable
from node.auth.federation import Federation, admits, ends_of, fits, looks_like_token
from node.auth.issuers import Issuers, Key, keys_of, pick
from node.config.settings import FederationRule
from node.hooks.addresses import networks
from node.records.accounts import update_account
from tests.auth.people import HOST, ROBOT_SECRET, Person, bearing, settled
from tests.auth.provider import Provider, provider, running
from tests.auth.test_endpoint import claims
from tests.registry.world import MakeWorld, Region

__all__ = ["provider"]
ROBOT = "private+writer"
LOCAL = ("127.0.0.0/8", "::1/128")
NOW = 1_800_000_000.0


def rule_of(issuer: str, **changes: str) -> FederationRule:
    given = {"robot": ROBOT, "issuer": issuer, "audience": HOST, "subject": "repo:team/app:*", **changes}
    return FederationRule(**given)


async def federated(world: MakeWorld, provider: Provider, **changes: Any) -> Region:
    given = {
        "federation": (rule_of(provider.url),),
        "webhook_networks": LOCAL,
        "authorities": provider.authorities,
        **changes,
    }
    (us,) = await settled(world, **given)
    return us


async def test_a_robot_without_a_secret(world: MakeWorld, provider: Provider) -> None:
    """A provider's token is a robot's password: it buys a registry token with the robot's rights, and no refresh token."""
    us = await federated(world, provider)
    token = await provider.token("repo:team/app:main", HOST)
    reply = await us.ask(
        "GET",
        "/v2/auth?offline_token=true&scope=repository:private/app:pull,push",
        headers=Person(ROBOT, token).basic,
    )
    assert reply.status == 200
    assert "refresh_token" not in reply.json
    (entry,) = claims(reply.json["token"])["access"]
    assert (claims(reply.json["token"])["sub"], entry["actions"]) == (ROBOT, ["pull", "push"])
    pushed = await us.ask("POST", "/v2/private/app/blobs/uploads/", headers=bearing(reply.json["token"]))
    assert pushed.status == 202
    own = await us.ask("GET", "/v2/auth", headers=Person(ROBOT, ROBOT_SECRET).basic)
    assert own.status == 200


async def test_what_no_rule_is_about(world: MakeWorld, provider: Provider) -> None:
    """Another subject, audience or robot, a disabled robot, a changed token and one that says not to be signed are all 401."""
    us = await federated(world, provider)
    good = await provider.token("repo:team/app:main", HOST)
    head, body, signature = good.split(".")
    unsigned = jwt.encode(jwt.decode(good, options={"verify_signature": False}), "", algorithm="none")
    for robot, token in (
        (ROBOT, await provider.token("repo:other/app:main", HOST)),
        (ROBOT, await provider.token("repo:team/app:main", "another.test")),
        ("private+reader", good),
        ("private+nobody", good),
        ("reader", good),
        (ROBOT, f"{head}.{body}.{signature[::-1]}"),
        (ROBOT, unsigned),
    ):
        assert (await us.ask("GET", "/v2/auth", headers=Person(robot, token).basic)).status == 401
    assert (await us.ask("GET", "/v2/auth", headers=Person(ROBOT, good).basic)).status == 200
    await update_account(us.registry.database, ROBOT, enabled=False)
    await us.node.access.open()
    assert (await us.ask("GET", "/v2/auth", headers=Person(ROBOT, good).basic)).status == 401


async def test_a_provider_in_a_network_that_is_not_allowed(world: MakeWorld, provider: Provider) -> None:
    """Nobody is asked at an address that is not public, unless an operator allows it: 503 says that it is not the token's fault."""
    us = await federated(world, provider, webhook_networks=None)
    token = await provider.token("repo:team/app:main", HOST)
    assert (await us.ask("GET", "/v2/auth", headers=Person(ROBOT, token).basic)).status == 503


async def test_a_provider_that_is_away(tmp_path: Path) -> None:
    """While its keys are known nobody notices; before, the token can be neither believed nor refused."""
    with running(tmp_path) as provider:
        token = await provider.token("repo:team/app:main", HOST)
        rules = (rule_of(provider.url),)
        knowing = Federation(rules, Issuers(networks(LOCAL), provider.authorities), time.time)
        assert await knowing.prove(ROBOT, token) is not None
    assert await knowing.prove(ROBOT, token) is not None
    without = Federation(rules, Issuers(networks(LOCAL), provider.authorities), time.time)
    with trio.fail_after(30), pytest.raises(DirectoryUnavailable):
        await without.prove(ROBOT, token)


RSA = rsa.generate_private_key(65537, 2048)


class Known(Issuers):
    """A provider whose keys are given."""

    def __init__(self, keys: dict[str | None, Key]) -> None:
        super().__init__((), None)
        self.given, self.asked = keys, 0

    async def key(self, _issuer: str, name: str | None) -> Key | None:
        self.asked += 1
        await trio.lowlevel.checkpoint()
        return self.given.get(name)


async def test_key_confusion() -> None:
    """A public key is never a shared secret, and a key is used only with the algorithms that are its own."""
    pem = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    told = {"iss": "https://i.test", "aud": HOST, "sub": "repo:team/app:x", "iat": NOW, "exp": NOW + 600}
    issuers = Known({"one": Key(RSA.public_key(), ("RS256",))})
    proving = Federation((rule_of("https://i.test"),), issuers, lambda: NOW)
    good = jwt.encode(told, RSA, algorithm="RS256", headers={"kid": "one"})
    assert await proving.prove(ROBOT, good) == NOW + 660
    assert await proving.prove(ROBOT, jwt.encode(told, RSA, algorithm="PS256", headers={"kid": "one"})) is None
    assert await proving.prove(ROBOT, jwt.encode(told, RSA, algorithm="RS256", headers={"kid": "two"})) is None
    asked = issuers.asked
    # The library refuses to sign so; an attacker does it by hand.
    parts = [jwt.utils.base64url_encode(json.dumps(part).encode()) for part in ({"alg": "HS256", "kid": "one"}, told)]
    signed = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(b".".join(parts), pem)
    forged = b".".join([*parts, jwt.utils.base64url_encode(signed)]).decode()
    assert await proving.prove(ROBOT, forged) is None
    foreign = jwt.encode({**told, "iss": "https://evil.test"}, RSA, algorithm="RS256", headers={"kid": "one"})
    assert await proving.prove(ROBOT, foreign) is None
    for odd in (["https://i.test"], {"https://i.test": 1}, None, 1, True):
        parts = [json.dumps(part).encode() for part in ({"alg": "RS256", "kid": "one"}, {**told, "iss": odd})]
        unsigned = b".".join(jwt.utils.base64url_encode(part) for part in (*parts, b"nobody's")).decode()
        assert await proving.prove(ROBOT, unsigned) is None, odd
    assert issuers.asked == asked, "nobody is asked for what cannot count"


def test_times() -> None:
    """A token counts from its beginning to its end, with a minute for clocks, and not if it is good for longer than a day."""
    good = {"iat": NOW, "exp": NOW + 600}
    assert ends_of(good, NOW) == NOW + 660
    for wrong in (
        {"exp": NOW - 61},
        {"iat": NOW + 61},
        {"nbf": NOW + 61},
        {"exp": NOW + 90_000},
        {"exp": None},
        {"iat": "now"},
        {"exp": True},
        {"exp": float("nan")},
        {"exp": 10**400},
    ):
        assert ends_of({**good, **wrong}, NOW) is None, wrong


@given(st.text(), st.text(), st.text())
def test_patterns(before: str, after: str, between: str) -> None:
    """A star stands for any text, and everything else in a pattern for itself."""
    before, after = before.replace("*", ""), after.replace("*", "")
    told = {"iss": "https://i.test", "aud": [HOST, "x"], "sub": f"{before}{between}{after}"}
    assert admits(rule_of("https://i.test", subject=f"{before}*{after}"), told)
    assert admits(rule_of("https://i.test", subject=f"{before}{after}"), told) is (between == "")
    assert not admits(rule_of("https://i.test", subject=f"{before}*{after}"), {**told, "aud": HOST + "x"})
    assert not admits(rule_of("https://i.test/", subject=f"{before}*{after}"), told)


@given(st.text("ab*", max_size=10), st.text("ab", max_size=12))
def test_patterns_with_many_stars(pattern: str, text: str) -> None:
    """However many stars there are, a pattern means the same as a regular expression with `.*` for each."""
    expression = ".*".join(map(re.escape, pattern.split("*")))
    assert fits(pattern, text) is (re.fullmatch(expression, text) is not None)


def test_a_pattern_that_would_keep_a_node() -> None:
    """What fits almost, in very many ways, is told as fast as anything else."""
    assert not fits("*a" * 200 + "b", "a" * 250)
    assert fits("*a" * 200 + "b", "a" * 250 + "b")


def test_key_sets() -> None:
    """Of a key set what can be used is used: shared secrets, keys for encryption, short ones and nonsense are left out."""

    def described(key: Any, algorithm: str, **more: Any) -> dict[str, Any]:
        made = jwt.get_algorithm_by_name(algorithm).to_jwk(key, as_dict=True)
        assert isinstance(made, dict)
        return {**{name: value for name, value in made.items() if name != "key_ops"}, **more}

    public = RSA.public_key()
    curve, edwards = ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate()
    short = rsa.generate_private_key(65537, 1024).public_key()  # noqa: S505  # that is the point
    found = keys_of(
        {
            "keys": [
                described(public, "RS256", kid="any"),
                described(public, "RS256", kid="only", alg="RS512"),
                described(curve.public_key(), "ES384", kid="curve"),
                described(edwards.public_key(), "EdDSA", kid="edwards"),
                described(public, "RS256", kid="encrypts", use="enc"),
                described(public, "RS256", kid="confused", alg="HS256"),
                described(short, "RS256", kid="short"),
                {"kty": "oct", "k": "c2VjcmV0", "kid": "shared"},
                {"kty": "RSA", "kid": "broken", "n": "!", "e": "AQAB"},
                "nonsense",
            ]
        }
    )
    assert {name: key.algorithms for name, key in found.items()} == {
        "any": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
        "only": ("RS512",),
        "curve": ("ES384",),
        "edwards": ("EdDSA",),
    }
    assert pick(found, "only") is found["only"]
    assert pick(found, None) is pick(found, "none") is None
    assert pick({"one": found["only"]}, None) is found["only"]
    assert keys_of({}) == keys_of({"keys": {}}) == {}


@pytest.mark.parametrize("secret", ["", "apr_secret", "a.b.c", "eyJ.x"])
def test_other_secrets(secret: str) -> None:
    """What is no token goes the way of secrets."""
    assert not looks_like_token(secret)
