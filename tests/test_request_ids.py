"""One id per request, through answers, logs and stores, whichever node is asked."""

import secrets

import httpx

from tests.cluster import StartCluster
from tests.faults import MakeFaulty
from tests.registry.world import MIB, digest_of


async def test_an_id_goes_through(start_cluster: StartCluster, faulty_store: MakeFaulty, repository: str) -> None:
    """A balancer's id is in the answer, in the error's body, in the log of the node and in what its stores are asked.

    The stores check their requests' signatures, so what is added for them breaks none.
    """
    us, eu = await faulty_store("us"), await faulty_store("eu")
    nodes = await start_cluster(
        "us eu",
        "eu us",
        stores={"us": us.store, "eu": eu.store},
        FEATURE_PROXY_STORAGE=True,
        TRUSTED_PROXY_CIDR=["127.0.0.0/8"],
    )
    us.asked, eu.asked = bytearray(), bytearray()
    data = secrets.token_bytes(6 * MIB)
    url = f"/v2/{repository}/blobs"
    async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
        push = {"x-request-id": "balancer/push-1"}
        pushed = await client.post(
            f"{nodes['us'].url}{url}/uploads/?digest={digest_of(data)}", content=data, headers=push
        )
        assert (pushed.status_code, pushed.headers["x-request-id"]) == (201, "balancer/push-1")
        pull = {"x-request-id": "balancer/pull-2"}
        pulled = await client.get(f"{nodes['eu'].url}{url}/{digest_of(data)}", headers=pull)
        assert (pulled.content, pulled.headers["x-request-id"]) == (data, "balancer/pull-2")
        miss = {"x-request-id": "balancer/miss-3"}
        missed = await client.get(f"{nodes['eu'].url}{url}/{digest_of(b'nothing')}", headers=miss)
        assert (missed.status_code, missed.json()["request_id"]) == (404, "balancer/miss-3")
        made = await client.get(f"{nodes['eu'].url}/v2/")
    asked = bytes(us.asked + eu.asked)
    for known in (b"balancer/push-1", b"balancer/pull-2"):
        assert b"X-Request-ID: " + known in asked
        assert b" request/" + known in asked
    await nodes["us"].stop()
    await nodes["eu"].stop()
    assert "balancer/push-1" in nodes["us"].log
    assert all(
        known in nodes["eu"].log for known in ("balancer/pull-2", "balancer/miss-3", made.headers["x-request-id"])
    )
