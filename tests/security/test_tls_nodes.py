"""Two nodes with TLS on every hop: their own listeners, PostgreSQL, Redis, and a store; real clients push and pull."""

import json
import ssl
from pathlib import Path

import httpx
import pytest
import trio

from engines.tls_trust import trusting
from tests.certificates import Authority, Pair
from tests.cluster import Cluster, StartCluster
from tests.security.conftest import MARK, Guarded
from tests.services import Store
from tests.test_store_dies import image_layout

PATIENCE = 30.0


@pytest.fixture
async def nodes(
    start_cluster: StartCluster,
    s3_stores: dict[str, Store],
    authority: Authority,
    guarded_postgres: Guarded,
    guarded_redis: Guarded,
    tmp_path: Path,
) -> Cluster:
    """A registry in which nothing speaks plain text but one store, whose secrets come from files, at log level debug."""
    pair, ca = authority.sign("node"), str(authority.own.certificate)
    for name, server in (("database", guarded_postgres), ("redis", guarded_redis)):
        (tmp_path / name).write_text(server.password + "\n")
    cluster = await start_cluster(
        "us eu",
        "eu us",
        stores={"us": s3_stores["us-tls"]},
        launch=False,
        PREFERRED_URL_SCHEME="https",
        SSL_CERTIFICATE=str(pair.certificate),
        SSL_CERTIFICATE_KEY=str(pair.key),
        DB_URI=f"postgresql://antipode@127.0.0.1:{guarded_postgres.port}/registry",
        DB_CONNECTION_ARGS={"sslmode": "verify-full", "sslrootcert": ca, "password": {"file": str(tmp_path / "database")}},
        USER_EVENTS_REDIS={"host": "127.0.0.1", "port": guarded_redis.port, "ssl": True, "ssl_ca_certs": ca,
                           "password": {"credential": "redis"}},
        FEATURE_PROXY_STORAGE=True,
    )  # fmt: skip
    for node in cluster:
        node.options = ["--log-level", "debug"]
        node.environment = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    await trio.to_thread.run_sync(cluster.start_now)
    return cluster


async def skopeo(*words: str | Path) -> None:
    with trio.fail_after(PATIENCE):
        command = ["skopeo", "--insecure-policy", "copy", *map(str, words)]
        done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


async def test_an_image_goes_in_here_and_out_there(
    nodes: Cluster, authority: Authority, repository: str, tmp_path: Path
) -> None:
    """skopeo, which trusts the authority, pushes to one node and pulls from the other; a new certificate disturbs neither."""
    trusted = tmp_path / "trusted"
    trusted.mkdir()
    (trusted / "ca.crt").write_bytes(authority.own.certificate.read_bytes())
    layout = image_layout(tmp_path / "layout", 3 << 20)
    us, eu = (f"docker://127.0.0.1:{nodes[name].port}/{repository}:v1" for name in ("us", "eu"))
    await skopeo("--dest-cert-dir", trusted, f"oci:{layout}", us)

    trust = trusting(authority.own.certificate)
    async with httpx.AsyncClient(verify=trust, timeout=60) as client:
        for node in nodes:
            facts = (await client.get(f"{node.url}/health/endtoend")).json()["data"]["services"]
            assert facts["redis"] is True, json.dumps(facts)
        pair: Pair = authority.sign("node", "renewed")
        for node in nodes:
            node.signal("SIGHUP")
        with trio.fail_after(PATIENCE):
            while not all("certificate reloaded" in node.log for node in nodes):  # noqa: ASYNC110 - a file tells nobody
                await trio.sleep(0.05)
        # The connection that was open before goes on, and new ones see the new certificate.
        assert (await client.get(f"{nodes['us'].url}/v2/")).status_code == 200
    assert ssl.get_server_certificate(("127.0.0.1", nodes["us"].port)) == pair.certificate.read_text()

    await skopeo("--src-cert-dir", trusted, eu, f"oci:{tmp_path}/back:v1")
    back = tmp_path / "back" / "blobs" / "sha256"
    assert any(file.stat().st_size > 3 << 20 for file in back.iterdir())
    assert all(MARK not in node.log for node in nodes)
