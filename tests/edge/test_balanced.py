"""The node behind the haproxy of deploy/: what a balancer says of its clients arrives, whether it ends TLS or passes it on."""

import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from pathlib import Path

import httpx
import trio

from node.answers import Answer, Request
from node.config.settings import EdgeSettings, TlsSettings
from node.tls import Certificates
from scripts.services.processes import Daemon, accepts_connections, free_ports
from tests.balancers import haproxy, needs_haproxy
from tests.certificates import Authority
from tests.edge.conftest import Node
from tests.edge.wire import PATIENCE
from tests.services import repository_root

pytestmark = needs_haproxy
BALANCER = (ip_network("127.0.0.1/32"),)
ELSEWHERE = "127.0.0.2"
"""Another address of the loopback interface, which is no balancer's."""


async def who(request: Request) -> Answer:
    return Answer(200, (), request.client.encode())


async def asked(url: str, verify: ssl.SSLContext | bool = True) -> list[str]:
    """Return whom the node takes a client for that is elsewhere and lies, in a pull and in a delete."""
    transport = httpx.AsyncHTTPTransport(verify=verify, local_address=ELSEWHERE)
    async with httpx.AsyncClient(transport=transport, timeout=PATIENCE) as client:
        with trio.fail_after(PATIENCE):
            while (await client.get(url)).status_code != 200:  # noqa: ASYNC110 - haproxy tells nobody what it has found
                await trio.sleep(0.1)
        lie = {"X-Forwarded-For": "6.6.6.6"}
        return [(await client.request(method, url, headers=lie)).text for method in ("GET", "DELETE")]


async def test_a_balancer_that_ends_tls(nursery: trio.Nursery, tmp_path: Path) -> None:
    """The node takes the client that the balancer adds to X-Forwarded-For, not what that client wrote there itself."""
    node = await Node(nursery, with_lane=True).start(who, edge=EdgeSettings(None, BALANCER))
    (port,) = free_ports(1)
    servers = dict.fromkeys(("us", "eu"), node.address.port)
    with haproxy(tmp_path, {"door": (port, servers)}):
        assert await asked(f"http://127.0.0.1:{port}/v2/") == [ELSEWHERE] * 2


async def test_a_frozen_node_keeps_no_reader(nursery: trio.Nursery, tmp_path: Path) -> None:
    """A read that a frozen node leaves without an answer is tried on the other one; writes, and who waits for copies, are not."""
    node = await Node(nursery, with_lane=True).start(who, edge=EdgeSettings(None, BALANCER))
    (port,) = free_ports(1)
    with socket.socket() as frozen:
        # The kernel goes on taking connections for a process that is stopped.
        frozen.bind(("127.0.0.1", 0))
        frozen.listen()
        servers = {"us": frozen.getsockname()[1], "eu": node.address.port}
        with haproxy(tmp_path, {"door": (port, servers)}, silence=1):
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as client:
                found = {}
                # Before haproxy's checks have found it out.
                async with trio.open_nursery() as asking:
                    for method, path in (("GET", "/v2/"), ("POST", "/v2/"), ("GET", "/api/v1/it/replication")):

                        async def ask(method: str, path: str) -> None:
                            found[method, path] = (await client.request(method, path)).status_code

                        asking.start_soon(ask, method, path)
    assert found == {("GET", "/v2/"): 200, ("POST", "/v2/"): 504, ("GET", "/api/v1/it/replication"): 504}


async def test_a_balancer_that_passes_tls_on(nursery: trio.Nursery, tmp_path: Path) -> None:
    """Haproxy says who connects by the PROXY protocol, also in its health checks; TLS is between the client and the node."""
    authority = Authority.make(tmp_path / "authority")
    pair = authority.sign("node", names="IP:127.0.0.1,DNS:registry.example.com")
    tls = Certificates(TlsSettings(pair.certificate, pair.key)).current
    edge = EdgeSettings(None, BALANCER, proxy_protocol=True)
    node = await Node(nursery, with_lane=True, tls=tls).start(who, edge=edge)
    with passing(tmp_path, node.address.port, authority) as port:
        trust = ssl.create_default_context(cafile=str(authority.own.certificate))
        url = f"https://127.0.0.1:{port}/v2/"
        with trio.fail_after(PATIENCE):
            # Until the first checks have been answered no server is up.
            while True:
                try:
                    assert await asked(url, trust) == [ELSEWHERE] * 2
                    break
                except httpx.TransportError:
                    await trio.sleep(0.1)


@contextmanager
def passing(folder: Path, node: int, authority: Authority) -> Iterator[int]:
    """Run haproxy as deploy/haproxy/passthrough.cfg has it, before one node; yield its port."""
    text = (repository_root() / "deploy" / "haproxy" / "passthrough.cfg").read_text()
    (port,) = free_ports(1)
    text = re.sub(r"\n    bind .*", f"\n    bind 127.0.0.1:{port}", text)
    text = re.sub(r"(\n    server \S+) \S+", rf"\g<1> 127.0.0.1:{node}", text)
    text = text.replace("/etc/haproxy/registry-ca.pem", str(authority.own.certificate))
    (folder / "haproxy.cfg").write_text(text)
    daemon = Daemon("haproxy", ["haproxy", "-db", "-f", folder / "haproxy.cfg"], folder)
    try:
        daemon.wait_ready(lambda: accepts_connections(port))
        yield port
    finally:
        daemon.stop()
