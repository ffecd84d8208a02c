"""A read replica of the database answers look-ups by digest, and never at the price of a stale or a missing answer."""

import json
import time

import httpx
import trio

from node.forgetting import PATIENCE
from node.push.reading import OCI_MANIFEST
from tests.cluster import Node, StartCluster
from tests.configurations import document, only_error, settings
from tests.faults import FaultProxy
from tests.registry.world import digest_of, image, until
from tests.replicas import Pair, open_pair
from tests.test_metrics import samples, value


def test_replicas_in_quay_s_form() -> None:
    """A list of databases, each with its own URI and arguments; what is wrong says in which."""
    given = [{"DB_URI": "postgresql+psycopg2://u@r1/db", "DB_CONNECTION_ARGS": {"sslmode": "require"}}]
    assert settings(DB_READ_REPLICAS=given).read_replicas == ("postgresql://u@r1/db?sslmode=require",)
    assert settings().read_replicas == ()
    assert only_error(DB_READ_REPLICAS="postgresql://h/db").startswith("DB_READ_REPLICAS: ")
    assert only_error(DB_READ_REPLICAS=["postgresql://h/db"]).startswith("DB_READ_REPLICAS[0]: ")
    bad = [*given, {"DB_URI": "mysql://h/db"}]
    assert only_error(DB_READ_REPLICAS=bad).startswith("DB_READ_REPLICAS[1].DB_URI: ")
    assert "DB_READ_REPLICAS" not in document()


async def looked(client: httpx.AsyncClient, node: Node, outcome: str) -> float:
    """Return how many look-ups at replicas ended so."""
    found = samples((await client.get(f"{node.url}/metrics")).text)
    return value(found, "antipode_replica_lookups_total", outcome=outcome)


async def test_a_replica_answers_for_digests(start_cluster: StartCluster, repository: str) -> None:
    """It is asked for what it surely knows; behind, ill or ignorant it costs a little time and never an answer."""
    async with open_pair() as pair, trio.open_nursery() as nursery:
        way: FaultProxy = await nursery.start(FaultProxy("127.0.0.1", pair.standby.port).serve)
        nodes = await start_cluster(
            "us eu",
            "eu us",
            DB_URI=Pair.uri_of(pair.primary),
            DB_READ_REPLICAS=[{"DB_URI": Pair.uri_of(pair.standby).replace(f":{pair.standby.port}/", f":{way.port}/")}],
        )
        us, eu = nodes["us"], nodes["eu"]
        async with httpx.AsyncClient(timeout=60, trust_env=False) as client:

            async def push(number: int) -> str:
                """Push an image at the us node and return its path there and elsewhere."""
                config = json.dumps({"architecture": "amd64", "os": "linux", "number": number}).encode()
                url = f"{us.url}/v2/{repository}/blobs/uploads/?digest={digest_of(config)}"
                assert (await client.post(url, content=config)).status_code == 201
                body = json.dumps(image(config)).encode()
                path = f"/v2/{repository}/manifests/"
                typed = {"content-type": OCI_MANIFEST}
                put = await client.put(f"{us.url}{path}tag-{number}", content=body, headers=typed)
                assert put.status_code == 201
                return f"{path}{digest_of(body)}"

            paths = [await push(number) for number in range(8)]
            await pair.caught_up()

            async def used() -> bool:
                assert (await client.get(f"{eu.url}{paths[0]}")).status_code == 200
                return await looked(client, eu, "used") > 0

            async def gone() -> bool:
                return (await client.get(f"{eu.url}{paths[1]}")).status_code == 404

            # As soon as the replica has shown the first mark; until then the primary answers.
            await until(used, 30)
            # What was written a moment ago is found at once: the replica's miss proves nothing.
            pair.line.break_("hang")
            fresh = await push(100)
            assert (await client.get(f"{eu.url}{fresh}")).status_code == 200
            # What was deleted is gone at once, although the replica still has it.
            began = time.monotonic()
            assert (await client.delete(f"{us.url}{paths[1]}")).status_code == 202
            if time.monotonic() - began >= PATIENCE:
                # The eu node was too busy to say in time that it has forgotten.
                await until(gone, 30)
            for _ in range(3):
                assert (await client.get(f"{eu.url}{paths[1]}")).status_code == 404
            assert (await client.get(f"{eu.url}/v2/{repository}/manifests/tag-100")).status_code == 200

            async def behind() -> bool:
                assert (await client.get(f"{eu.url}{paths[2]}")).status_code == 200
                return await looked(client, eu, "behind") > 0

            await until(behind, 30)
            # One that hangs costs a second, once.
            way.break_("hang")

            async def failed() -> bool:
                began = time.monotonic()
                assert (await client.get(f"{eu.url}{paths[3]}")).status_code == 200
                # Not as long as this client would wait.
                assert time.monotonic() - began < 30
                return await looked(client, eu, "failed") > 0

            await until(failed, 30)
            way.mend()
            pair.line.mend()
            await pair.caught_up()
            before = await looked(client, eu, "used")

            async def used_again() -> bool:
                assert (await client.get(f"{eu.url}{paths[4]}")).status_code == 200
                return await looked(client, eu, "used") > before

            await until(used_again, 60)
            # While the primary is away the replica answers what this node has never seen, within METADATA_GRACE.
            pair.primary.kill()

            async def answered() -> bool:
                return (await client.get(f"{eu.url}{paths[7]}")).status_code == 200

            await until(answered, 60)
            assert (await client.get(f"{eu.url}/v2/{repository}/manifests/tag-7")).status_code == 503
        nursery.cancel_scope.cancel()
