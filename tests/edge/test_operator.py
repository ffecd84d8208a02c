"""Health, status and ping as load balancers and operators ask for them, with Quay's JSON and statuses."""

import json

import pytest
from attrs import evolve

from node.health import HealthFacts, ServiceFacts, ServiceState
from node.web.operator_app import create_operator_app
from replication.model import LocationHealth, Verdict
from tests.edge.conftest import Logged, Node, healthy, hello
from tests.edge.wire import Client, Reply

DOWN = LocationHealth("us", Verdict.DOWN, 0.0, "EngineUnavailable: connection refused by 10.0.0.7")
SECRET = "X-Health-Debug: open sesame\r\n"


async def ask(client: Client, target: str, headers: str = "") -> tuple[int, dict[str, object]]:
    reply = await client.ask(target, headers=headers)
    assert reply.headers["content-type"] == "application/json"
    return reply.status, json.loads(reply.body)


@pytest.mark.parametrize(
    ("target", "services"),
    [
        ("/health", {"auth", "database", "disk_space"}),
        ("/health/instance", {"auth", "database", "disk_space"}),
        ("/health/endtoend", {"auth", "database", "redis", "storage", "accepting"}),
        ("/status", {"auth", "database", "redis", "storage", "accepting"}),
        ("/health/warning", {"disk_space_warning"}),
    ],
)
async def test_all_is_well(node: Node, target: str, services: set[str]) -> None:
    """Each health endpoint answers 200 with a boolean per service, its status in the body, and nothing that may be cached."""
    await node.start(hello)
    async with node.client() as client:
        status, body = await ask(client, target)
        assert (status, body) == (200, {"data": {"services": dict.fromkeys(services, True)}, "status_code": 200})
        assert "no-store" in (await client.ask(target)).headers["cache-control"]
        assert (await client.ask(target, "HEAD")).status == 200


async def test_preferred_store_down(node: Node) -> None:
    """When the preferred store is down the end-to-end health is 503, and only who knows the secret reads why."""
    await node.start(hello)
    node.facts_now = evolve(healthy(), board={**healthy().board, "us": DOWN})
    async with node.client() as client:
        for target in ("/health/endtoend", "/status"):
            status, body = await ask(client, target)
            assert (status, body["status_code"]) == (503, 503)
            assert "10.0.0.7" not in json.dumps(body)
            assert "10.0.0.7" not in json.dumps((await ask(client, target, "X-Health-Debug: open\r\n"))[1])
            assert "10.0.0.7" in json.dumps((await ask(client, target, SECRET))[1])
        assert (await ask(client, "/health/instance"))[0] == 200


async def test_no_secret_configured(node: Node) -> None:
    """Without a configured secret nothing opens the details."""
    await node.start(hello, debug_secret=None)
    async with node.client() as client:
        for header in (SECRET, "X-Health-Debug: \r\n", "X-Health-Debug: None\r\n"):
            assert "services_expanded" not in json.dumps((await ask(client, "/health", header))[1])


async def test_crashed_service(node: Node) -> None:
    """A service that crashed is visible in the instance health."""
    await node.start(hello)
    node.facts_now = evolve(healthy(), services={"watcher": ServiceFacts(ServiceState.RESTARTING, "KeyError: 'x'", 3)})
    async with node.client() as client:
        status, body = await ask(client, "/health/instance", SECRET)
        assert status == 503
        assert body["data"] == {
            "services": {"auth": True, "database": True, "disk_space": True, "service_watcher": False},
            "services_expanded": {
                "auth": {"status": True},
                "database": {"status": True},
                "disk_space": {"status": True},
                "service_watcher": {"status": False, "failure": "restarting, 3 restarts, KeyError: 'x'"},
            },
            "hostname": "",
        }


@pytest.mark.parametrize("target", ["/_internal_ping", "/v1/_internal_ping"])
async def test_ping(node: Node, target: str) -> None:
    """A ping is answered `true` by a node that can answer at all."""
    await node.start(hello)
    async with node.client() as client:
        reply = await client.ask(target)
        assert (reply.status, reply.body.strip()) == (200, b"true")


async def test_locations(node: Node) -> None:
    """The board is shown with the preferred location first, and its reasons only to who knows the secret."""
    await node.start(hello)
    node.facts_now = evolve(healthy(), board={**healthy().board, "us": DOWN})
    async with node.client() as client:
        _, body = await ask(client, "/api/v1/health/locations")
        shown = body["locations"]
        assert isinstance(shown, list)
        assert [(line["location"], line["verdict"], line["preferred"]) for line in shown] == [
            ("us", "down", True),
            ("eu", "healthy", False),
        ]
        assert "10.0.0.7" not in json.dumps(body)
        assert "10.0.0.7" in json.dumps((await ask(client, "/api/v1/health/locations", SECRET))[1])


def errors(reply: Reply) -> tuple[int, str]:
    document = json.loads(reply.body)
    assert document["request_id"] == reply.headers["x-request-id"]
    return reply.status, document["errors"][0]["code"]


async def test_framework_errors(node: Node) -> None:
    """No route and wrong method are told in JSON, as every error here."""
    await node.start(hello)
    async with node.client() as client:
        for target in ("/", "/v3/", "/v22", "/health/none", "/..%2fv2"):
            assert errors(await client.ask(target)) == (404, "UNSUPPORTED")
        wrong = await client.ask("/health", "POST", body=b"x")
        assert errors(wrong) == (405, "UNSUPPORTED")
        assert set(wrong.headers["allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}
        assert (await client.ask("/health")).status == 200


@pytest.mark.parametrize(
    "target", ["//health", "/health//endtoend", "/api//v1/health/locations", "/health/", "/status/"]
)
async def test_no_redirects(node: Node, target: str) -> None:
    """Nothing is redirected to the host that a client names, whatever its path looks like."""
    await node.start(hello)
    async with node.client() as client:
        reply = await client.ask(target)
        assert reply.status in (200, 404)
        assert "location" not in reply.headers


async def test_bug_in_an_operator_view(node: Node, logged: Logged) -> None:
    """A bug here too is a 500 in JSON without a word about its cause, and logged once with the request id."""

    class Broken(Node):
        def facts(self) -> HealthFacts:
            raise KeyError("the secret cause")

    broken = Broken(node.nursery)
    await broken.start(hello)
    async with broken.client() as client:
        reply = await client.ask("/health")
        assert errors(reply) == (500, "UNKNOWN")
        assert b"secret" not in reply.body
    (error,) = logged.take_errors()
    assert "the secret cause" in repr(error["exc_info"])
    assert error["request_id"] == reply.headers["x-request-id"]


async def test_probes_are_quiet(node: Node, logged: Logged) -> None:
    """Good answers to load balancers are logged at debug level, bad ones and everything else at info."""
    await node.start(hello)
    async with node.client() as client:
        await client.ask("/health/endtoend")
        await client.ask("/health/none")
    await logged.request(2)
    assert [line["log_level"] for line in logged.requests()] == ["debug", "info"]


def test_quart_limits() -> None:
    """Quart neither cuts slow answers off (stack pitfall P4) nor takes large bodies (P3)."""
    app = create_operator_app(Node.__new__(Node))
    assert app.config["RESPONSE_TIMEOUT"] is None
    assert app.config["MAX_CONTENT_LENGTH"] == 64 * 1024
