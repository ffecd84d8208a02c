"""What a load balancer's probes cost a node: nothing that leaves it."""

import json

from node.elsewhere import LIES
from node.web.operator_app import create_operator_app
from replication.ports import Seen
from tests.registry.world import MakeWorld, until


async def test_probes_of_a_balancer_cost_no_call(world: MakeWorld) -> None:
    """A thousand health requests ask no store, and send no statement to the database."""
    (us,) = await world("us eu", probe_interval=3600.0)
    client = create_operator_app(us.node).test_client()
    calls = {name: len(engine.calls) for name, engine in us.engines.items()}
    trips = us.registry.database.statistics().trips
    for _ in range(200):
        for path in ("/health", "/health/endtoend", "/status", "/health/warning", "/api/v1/health/locations"):
            assert (await client.get(path)).status_code == 200
    assert us.registry.database.statistics().trips == trips
    assert {name: len(engine.calls) for name, engine in us.engines.items()} == calls


async def test_verdicts_are_shared(world: MakeWorld) -> None:
    """What a node thinks of a location is shown on the others, whose own verdict stays their own."""
    us, eu = await world("us eu", "eu us", probe_interval=3600.0)
    client = create_operator_app(us.node).test_client()

    async def line() -> dict[str, object]:
        document = json.loads(await (await client.get("/api/v1/health/locations")).get_data())
        return next(dict(found) for found in document["locations"] if found["location"] == "eu")

    eu.node.watcher.report("eu", ok=False, reason="reset")
    name = eu.node.name

    async def told() -> bool:
        return (await line())["elsewhere"] == {name: "degraded"}

    await until(told)
    assert (await line())["verdict"] == "healthy"
    eu.node.hints.publish(Seen("eu", "healthy", name), Seen("eu", LIES, name))

    async def doubted() -> bool:
        found = await line()
        return found["elsewhere"] == {} and float(str(found["doubted_seconds"])) > 30

    await until(doubted)
