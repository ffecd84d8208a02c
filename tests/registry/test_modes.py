"""Read-only mode and refused pushes: what is refused, how, and what goes on."""

import os
import signal

import httpx
import pytest
import trio
import trio.testing
import yaml
from attrs import evolve

from node.modes import Change, refusal
from tests.cluster import Cluster, StartCluster
from tests.configurations import settings
from tests.registry.world import Region, digest_of, until


def test_what_is_refused() -> None:
    """Read-only refuses every change, DISABLE_PUSHES pushes alone, and normally nothing is refused."""
    table = {
        (state, disabled, change): refusal(settings(REGISTRY_STATE=state, DISABLE_PUSHES=disabled), change) is not None
        for state in ("normal", "readonly")
        for disabled in (False, True)
        for change in Change
    }
    assert {key for key, refused in table.items() if refused} == {
        ("normal", True, Change.PUSH),
        *(("readonly", disabled, change) for disabled in (False, True) for change in Change),
    }


@pytest.mark.parametrize("mode", ["readonly", "disable_pushes"])
async def test_a_push_is_refused_at_every_step(us: Region, repository: str, mode: str) -> None:
    """From the beginning of an upload to its commit a push is refused with 405, mounts too; pulls and looks at uploads go on."""
    layer = b"a layer"
    digest = await us.push_image(repository, "v1", layer)
    begun = await us.start_upload(repository)
    changed = {"registry_state": "readonly"} if mode == "readonly" else {"disable_pushes": True}
    us.node.settings = evolve(us.node.settings, **changed)
    uploads, blob = f"/v2/{repository}/blobs/uploads/", digest_of(layer)
    for method, target, body in (
        ("POST", uploads, b""),
        ("POST", f"{uploads}?digest={digest_of(b'x')}", b"x"),
        ("POST", f"/v2/{repository}-2/blobs/uploads/?mount={blob}&from={repository}", b""),
        ("PATCH", begun, b"x"),
        ("PUT", f"{begun}&digest={digest_of(b'x')}", b"x"),
        ("PUT", f"/v2/{repository}/manifests/v2", b"{}"),
    ):
        reply = await us.ask(method, target, body)
        assert (method, reply.failure) == (method, (405, "UNSUPPORTED"))
        assert ("REGISTRY_STATE" if mode == "readonly" else "DISABLE_PUSHES") in reply.json["errors"][0]["message"]
    for target, status in (
        (f"/v2/{repository}/manifests/v1", 200),
        (f"/v2/{repository}/blobs/{blob}", 200),
        (begun, 204),
    ):
        assert (await us.ask("GET", target)).status == status
    deleted = await us.ask("DELETE", f"/v2/{repository}/manifests/{digest}")
    assert deleted.status == (405 if mode == "readonly" else 202)
    us.node.settings = evolve(us.node.settings, registry_state="normal", disable_pushes=False)
    assert (await us.put(begun, digest_of(b"y"), b"y")).status == 201


async def test_nothing_is_collected_meanwhile(us: Region, nursery: trio.Nursery) -> None:
    """While it is read-only a node collects nothing, and when that ends it goes on."""
    looked = trio.Event()

    def held() -> bool:
        looked.set()
        return us.node.read_only()

    us.node.settings = evolve(us.node.settings, registry_state="readonly")
    await nursery.start(us.node.collector.run, 0.01, held)
    await looked.wait()
    await trio.testing.wait_all_tasks_blocked()
    assert us.node.collector.statistics().rounds == 0
    us.node.settings = evolve(us.node.settings, registry_state="normal")

    async def collected() -> bool:
        return us.node.collector.statistics().rounds > 0

    await until(collected)


async def test_a_running_node(start_cluster: StartCluster, repository: str) -> None:
    """A node becomes read-only and takes pushes again at SIGHUP, without a restart; its health is as before."""
    nodes = await start_cluster("us eu")
    url = nodes["us"].url
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as http:

        async def begun() -> int:
            return (await http.post(f"/v2/{repository}/blobs/uploads/")).status_code

        assert await begun() == 202
        for state, expected in (("readonly", 405), ("normal", 202)):
            hang_up(nodes, state)

            async def so(expected: int = expected) -> bool:
                return await begun() == expected

            await until(so)
            assert (await http.get("/health/endtoend")).status_code == 200


def hang_up(nodes: Cluster, state: str) -> None:
    nodes.configuration_file.write_text(yaml.safe_dump({**nodes.configuration, "REGISTRY_STATE": state}))
    os.kill(nodes["us"].pid, signal.SIGHUP)
