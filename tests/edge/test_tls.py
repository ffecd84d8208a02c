"""TLS on the node's own listener, as real openssl and curl see it: versions, ALPN, a new certificate, handshakes that never end."""

import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from attrs import evolve

from node.config.settings import TlsSettings
from node.shares import Places, Share, Sources
from node.tls import BadCertificate, Certificates, Life, make_context
from node.web.app import create_app
from node.web.arrival import LEAST, SHARE, Arrivals, NotAdmitted
from node.web.crowd import Crowd
from node.web.lane import Lane
from node.web.listener import Address, serve_sockets
from tests.certificates import Authority
from tests.edge.conftest import SETTINGS, Logged, Node, hello
from tests.edge.wire import PATIENCE, Closed, connect


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def settings(authority: Authority) -> TlsSettings:
    pair = authority.sign("node")
    return TlsSettings(pair.certificate, pair.key)


def trust(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(authority.own.certificate))


async def run(*words: str | Path, input_: bytes = b"") -> tuple[int, str]:
    """Run a client program and return its exit code and all that it wrote."""
    with trio.fail_after(PATIENCE):
        done = await trio.run_process(
            list(map(str, words)), stdin=input_, capture_stdout=True, stderr=subprocess.STDOUT, check=False
        )
    return done.returncode, done.stdout.decode(errors="replace")


@asynccontextmanager
async def serving(nursery: trio.Nursery, certificates: Certificates, authority: Authority) -> AsyncIterator[Node]:
    yield await Node(nursery, with_lane=True, tls=certificates.current, trust=trust(authority)).start(hello)


def s_client(node: Node, authority: Authority, *words: str) -> list[str | Path]:
    return ["openssl", "s_client", "-connect", str(node.address), "-CAfile", authority.own.certificate,
            "-verify_return_error", "-brief", *words]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "spoken"),
    [
        (("-tls1_3",), "TLSv1.3"),
        (("-tls1_2",), "TLSv1.2"),
        (("-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"), None),
        (("-tls1", "-cipher", "DEFAULT@SECLEVEL=0"), None),
        (("-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"), "ECDHE-ECDSA-AES128-GCM-SHA256"),
        (("-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA256:AES128-GCM-SHA256:AES256-SHA"), None),
    ],
)
async def test_only_modern_tls_is_spoken(
    nursery: trio.Nursery, authority: Authority, settings: TlsSettings, words: tuple[str, ...], spoken: str | None
) -> None:
    """TLS 1.2 with forward secrecy and authenticated encryption, and TLS 1.3, are spoken; everything older is refused."""
    async with serving(nursery, Certificates(settings), authority) as node:
        code, said = await run(*s_client(node, authority, *words))
    assert (code == 0) == (spoken is not None), said
    assert spoken is None or spoken in said
    assert spoken is None or "Verification: OK" in said


@pytest.mark.parametrize(
    ("suites", "offered", "chosen"),
    [
        ((), "TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256", "TLS_AES_128_GCM_SHA256"),
        ((), "TLS_AES_256_GCM_SHA384", "TLS_AES_256_GCM_SHA384"),
        (("TLS_AES_256_GCM_SHA384",), "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384", "TLS_AES_256_GCM_SHA384"),
        (("TLS_AES_256_GCM_SHA384",), "TLS_AES_128_GCM_SHA256", None),
    ],
)
async def test_suites_of_tls_1_3(
    nursery: trio.Nursery,
    authority: Authority,
    settings: TlsSettings,
    suites: tuple[str, ...],
    offered: str,
    chosen: str | None,
) -> None:
    """A client gets the node's first suite that it has, by default AES-128-GCM, and none that the node was not given."""
    async with serving(nursery, Certificates(evolve(settings, suites=suites)), authority) as node:
        code, said = await run(*s_client(node, authority, "-tls1_3", "-ciphersuites", offered))
    assert (code == 0) == (chosen is not None), said
    assert chosen is None or chosen in said


@pytest.mark.parametrize(("offered", "chosen"), [("h2,http/1.1", "http/1.1"), ("h2", None)])
async def test_alpn_offers_http_1_1_only(
    nursery: trio.Nursery, authority: Authority, settings: TlsSettings, offered: str, chosen: str | None
) -> None:
    """A client that would like HTTP/2 gets HTTP/1.1."""
    async with serving(nursery, Certificates(settings), authority) as node:
        words = [word for word in s_client(node, authority, "-alpn", offered) if word != "-brief"]
        _, said = await run(*words)
    assert (f"ALPN protocol: {chosen}" if chosen else "No ALPN negotiated") in said


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "another.example.com", ""])
async def test_the_name_that_a_client_asks_for_is_irrelevant(
    nursery: trio.Nursery, authority: Authority, settings: TlsSettings, name: str
) -> None:
    """There is one certificate; whether it fits the name that the client means (SNI) is the client's to judge."""
    async with serving(nursery, Certificates(settings), authority) as node:
        words = ["-servername", name] if name else ["-noservername"]
        code, said = await run(*s_client(node, authority, *words))
    assert code == 0, said
    assert "Verification: OK" in said


async def test_curl_is_served(nursery: trio.Nursery, authority: Authority, settings: TlsSettings) -> None:
    """curl, which likes HTTP/2, trusts the authority, gets HTTP/1.1 and an answer; without the authority it refuses."""
    async with serving(nursery, Certificates(settings), authority) as node:
        url = f"https://{node.address}/v2/"
        told = ["--silent", "--show-error", "--write-out", " %{http_version} %{http_code}"]
        assert await run("curl", *told, "--cacert", authority.own.certificate, url) == (0, "GET /v2/ 1.1 200")
        code, _ = await run("curl", *told, url)
        assert code == 60, "the certificate's authority is not known"


async def test_plain_text_is_not_spoken_on_a_tls_port(
    nursery: trio.Nursery, authority: Authority, settings: TlsSettings
) -> None:
    """Who speaks plain HTTP to a TLS listener gets no answer, and others are not harmed."""
    async with serving(nursery, Certificates(settings), authority) as node:
        async with connect(node.address) as plain:
            await plain.send(b"GET /v2/ HTTP/1.1\r\nHost: node\r\n\r\n")
            with pytest.raises(Closed):
                await plain.reply()
        async with node.client() as client:
            assert (await client.ask("/v2/")).status == 200


async def test_a_new_certificate_is_taken_while_connections_stay(
    nursery: trio.Nursery, authority: Authority, logged: Logged
) -> None:
    """New files serve new connections; those that are open go on; a broken file changes nothing and is logged once."""
    pair = authority.sign("node", "first")
    certificates = Certificates(TlsSettings(pair.certificate, pair.key))
    async with serving(nursery, certificates, authority) as node:

        async def subject() -> str:
            _, said = await run(*s_client(node, authority))
            return said.split("Peer certificate: CN = ")[1].split("\n")[0]

        async with node.client() as client:
            assert (await client.ask("/v2/")).status == 200
            assert await subject() == "first"
            assert not certificates.refresh()

            authority.sign("node", "second")
            await certificates.look()
            assert await subject() == "second"
            assert (await client.ask("/v2/")).status == 200

            pair.key.write_text("-----BEGIN PRIVATE KEY-----\nmarked-secret\n-----END PRIVATE KEY-----\n")
            await certificates.look()
            await certificates.look()
            (error,) = logged.take_errors()
            assert error["event"] == "the new certificate cannot be used: the old one stays"
            assert "marked-secret" not in repr(error)
            assert await subject() == "second"

            pair.key.unlink()
            await certificates.look()
            (error,) = logged.take_errors()
            assert error["path"] == str(pair.key)
            assert await subject() == "second"

            authority.sign("node", "third")
            await certificates.look()
            assert await subject() == "third"
            assert (await client.ask("/v2/")).status == 200


def test_a_pair_that_does_not_fit_is_refused_by_name(authority: Authority, settings: TlsSettings) -> None:
    """What is wrong is said with the file that is at fault, and never with what is in it."""
    other = authority.sign("other")
    with pytest.raises(BadCertificate, match="not that of the certificate") as mixed:
        make_context(evolve(settings, key=other.key))
    assert mixed.value.path == str(other.key)
    with pytest.raises(BadCertificate, match="no certificate in it"):
        make_context(evolve(settings, certificate=settings.key))
    with pytest.raises(BadCertificate, match="no private key in it"):
        make_context(evolve(settings, key=settings.certificate))
    with pytest.raises(BadCertificate, match="No such file"):
        make_context(evolve(settings, key=settings.key.with_name("missing")))
    with pytest.raises(BadCertificate, match="none of these ciphers"):
        make_context(evolve(settings, ciphers="ROT13"))
    locked = settings.key.with_name("locked.key")
    subprocess.run(
        ["openssl", "pkey", "-in", str(settings.key), "-aes256", "-passout", "pass:x", "-out", str(locked)], check=True
    )
    with pytest.raises(BadCertificate, match="has a passphrase"):
        make_context(evolve(settings, key=locked))


async def test_a_handshake_has_a_deadline(settings: TlsSettings, autojump_clock: trio.testing.MockClock) -> None:
    """A client that connects and says nothing loses its connection at the deadline."""
    arrivals = Arrivals(100, Crowd(Places("connections", Share(100)), Sources()), Certificates(settings).current)
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.create_connection(listening.getsockname()):
        accepted, (host, _) = listening.accept()
        with accepted, pytest.raises(NotAdmitted):
            await arrivals.admit(accepted, host)
    assert trio.current_time() == arrivals.seconds


async def test_silent_connections_make_way_for_new_ones(
    nursery: trio.Nursery, authority: Authority, settings: TlsSettings
) -> None:
    """However many clients connect and say nothing, the next one that speaks is served at once; the oldest silent one goes."""
    node = Node(nursery, tls=Certificates(settings).current, trust=trust(authority))
    await node.start(hello, maximum_connections=SHARE * LEAST)
    silent = [await trio.open_tcp_stream(node.address.host, node.address.port) for _ in range(LEAST * 3)]
    try:
        async with node.client() as client:
            assert (await client.ask("/v2/")).status == 200
        with trio.fail_after(PATIENCE):
            assert await silent[0].receive_some(1) == b""
    finally:
        for stream in silent:
            await stream.aclose()


def test_an_overdue_renewal_is_remarked() -> None:
    """With less than a quarter of its life left, before it begins and after it has ended a certificate is spoken of."""
    life = Life(0.0, 90 * 86400.0)
    assert life.remark(0.0) is None
    assert life.remark(60 * 86400.0) is None
    assert life.remark(68 * 86400.0) == "the certificate ends in 22.0 days and has not been renewed"
    assert "has expired" in (life.remark(90 * 86400.0) or "")
    assert "not good yet" in (life.remark(-1.0) or "")


async def test_an_overdue_renewal_is_said_once_a_day(
    settings: TlsSettings, logged: Logged, autojump_clock: trio.testing.MockClock
) -> None:
    """The log says it at the start and every day after, until the certificate is renewed."""
    began = time.time()
    certificates = Certificates(settings, clock=lambda: began + 1.6 * 86400 + trio.current_time())
    with trio.move_on_after(0.9 * 86400):
        while True:
            await trio.sleep(3600)
            certificates._remind()
    said = [entry for entry in logged.entries if entry["log_level"] == "warning"]
    assert ["ends in 0.4 days" in entry["event"] for entry in said] == [True]
    with trio.move_on_after(0.2 * 86400):
        while True:
            await trio.sleep(3600)
            certificates._remind()
    assert "has expired" in logged.entries[-1]["event"]


async def test_a_socket_that_outlives_the_node(
    nursery: trio.Nursery, authority: Authority, settings: TlsSettings
) -> None:
    """Where the service manager holds the socket, a handshake that begins between two nodes is the next node's."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        address = Address(*held.getsockname())
        async with held_by(nursery, held, Certificates(settings)), connect(address, tls=trust(authority)) as client:
            assert (await client.ask("/v2/")).status == 200
        async with connect(address, tls=trust(authority)) as early:
            nursery.start_soon(early.send, b"GET /v2/early HTTP/1.1\r\nHost: node\r\n\r\n")
            await trio.testing.wait_all_tasks_blocked(0.05)
            async with held_by(nursery, held, Certificates(settings)):
                assert (await early.reply()).body == b"GET /v2/early"


@asynccontextmanager
async def held_by(nursery: trio.Nursery, held: socket.socket, certificates: Certificates) -> AsyncIterator[None]:
    """Serve on a socket that stays open when the node stops."""
    shutdown, ended = trio.Event(), trio.Event()
    inherited = held.dup()
    inherited.setblocking(False)

    async def run(task_status: trio.TaskStatus[Address]) -> None:
        await serve_sockets(
            create_app(hello, Node(nursery), SETTINGS),
            SETTINGS,
            sockets=[inherited],
            shutdown=shutdown,
            tls=certificates.current,
            outlived=True,
            lane=Lane(hello),
            task_status=task_status,
        )
        ended.set()

    await nursery.start(run)
    yield
    shutdown.set()
    with trio.fail_after(PATIENCE):
        await ended.wait()
