"""Builds the conformance suite once, runs it against nodes on Ceph, and fails unless results.yaml says that all passed.

Three runs: one node with OCI_VERSION 1.1 and with dev, and dev once more with reads in `eu` and writes in `us`.
"""

import argparse
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio
import yaml
from attrs import frozen

from tests.certificates import Authority
from tests.cluster import Cluster, configuration
from tests.cluster import program as cli
from tests.conformance.gate import complaints, totals
from tests.conformance.split_proxy import SplitProxy, Terminating
from tests.services import all_stores, fresh_database, fresh_storage_path, required

MODULE = "github.com/opencontainers/distribution-spec/conformance"
# The suite of the spec's commit 967efdc, plus one change: its client no longer asks for compressed answers.
VERSION = "v0.0.0-20260831232431-97274622c111"
VERSIONS = ("1.1", "dev")
"""Values of OCI_VERSION, and names of the runs."""
_RUN_SECONDS = 900


def cache_folder() -> Path:
    """Return the folder that keeps the built suite between runs."""
    home = os.environ.get("XDG_CACHE_HOME") or Path(os.environ.get("HOME") or tempfile.gettempdir()) / ".cache"
    return Path(home) / "antipode"


def build() -> Path:
    """Return the suite's program, built at first use; needs `go` 1.24 or newer on the PATH.

    Raises:
        subprocess.CalledProcessError: the build failed.

    """
    folder = cache_folder() / f"conformance-{VERSION}"
    program = folder / "conformance"
    if not program.exists():
        print(f"building {MODULE}@{VERSION}", flush=True)
        # A pinned version needs no version control; GOWORK or GOFLAGS of a developer must not change it.
        environment = {**os.environ, "GOBIN": str(folder), "GOFLAGS": "-buildvcs=false", "GOWORK": "off"}
        subprocess.run(["go", "install", f"{MODULE}@{VERSION}"], check=True, env=environment, timeout=600)
    return program


@frozen
class Login:
    """Whom the suite logs in as."""

    name: str
    password: str


def judge(
    program: Path,
    registry: str,
    version: str,
    folder: Path,
    label: str,
    login: Login | None = None,
    authority: Path | None = None,
) -> bool:
    """Run the suite against `registry` (host:port), print totals and complaints, say whether it passed.

    It speaks plain HTTP, or TLS with certificates that `authority` vouches for.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("OCI_")},
        "OCI_VERSION": version,
        "OCI_REGISTRY": registry,
        # Its "insecure" means nothing to it; as every Go program it trusts what SSL_CERT_FILE names.
        **({"OCI_TLS": "disabled"} if authority is None else {"OCI_TLS": "enabled", "SSL_CERT_FILE": str(authority)}),
        "OCI_REPO1": f"conformance-{label}/one",
        "OCI_REPO2": f"conformance-{label}/two",
        "OCI_LOG": "warn",
        "OCI_RESULTS_DIR": str(folder),
        **({"OCI_USERNAME": login.name, "OCI_PASSWORD": login.password} if login is not None else {}),
    }
    began, clock = time.time(), time.monotonic()
    with (folder / "output.txt").open("w+") as output:
        subprocess.run(
            [program], env=environment, cwd=folder, stdout=output, stderr=output, timeout=_RUN_SECONDS, check=False
        )
        output.seek(0)
        text = output.read()
    results = folder / "results.yaml"
    counted = totals(text)
    print(f"conformance {label} (OCI_VERSION={version}) in {time.monotonic() - clock:.1f} s: {counted}", flush=True)
    if not results.exists() or results.stat().st_mtime < began - 1:
        print(f"  no fresh results.yaml; the suite said:\n{text[-2000:]}", flush=True)
        return False
    wrong = complaints(yaml.safe_load(results.read_text()), counted, version, registry)
    for line in wrong:
        print(f"  {line}", flush=True)
    return not wrong


_KEY = "a secret key for the conformance suite"


def enrol(cluster: Cluster, login: Login) -> None:
    """Make the account that the suite logs in as, and organisations of it for the namespaces that it pushes to."""
    accounts = [["user", "create", login.name, "--password-stdin"]]
    labels = [f"{where}{version}" for where in ("", "across-") for version in VERSIONS]
    accounts += [["org", "create", f"conformance-{label}", "--admin", login.name] for label in labels]
    for words in accounts:
        subprocess.run(
            [*cli(), *words, "--config", str(cluster.configuration_file)],
            input=f"{login.password}\n".encode(),
            stdout=subprocess.DEVNULL,
            check=True,
            timeout=60,
        )


def _speaking_tls(authority: Authority) -> dict[str, object]:
    pair = authority.sign("node")
    return {
        "PREFERRED_URL_SCHEME": "https",
        "SSL_CERTIFICATE": str(pair.certificate),
        "SSL_CERTIFICATE_KEY": str(pair.key),
        # The stores' own URLs are plain HTTP.
        "FEATURE_PROXY_STORAGE": True,
    }


@contextmanager
def nodes(folder: Path, login: Login | None = None, authority: Authority | None = None) -> Iterator[Cluster]:
    """Run a node for us and one for eu on the stores of the environment, and empty these afterwards.

    With `login` they have accounts, and clients get their tokens from the node for us. With `authority` they speak TLS.
    """
    stores = {name: store for name, store in all_stores().items() if name in ("us", "eu")}
    path = fresh_storage_path()
    try:
        with fresh_database(required("ANTIPODE_TEST_POSTGRES")) as uri:
            accounts = {} if login is None else {"FEATURE_OPEN_REGISTRY": None, "DATABASE_SECRET_KEY": _KEY}
            tls = {} if authority is None else _speaking_tls(authority)
            file = configuration(uri, os.environ.get("ANTIPODE_TEST_REDIS"), stores, path, **accounts, **tls)
            cluster = Cluster(folder, file, ["us eu", "eu us"])
            for node in cluster:
                name = json.dumps({"SERVER_HOSTNAME": f"127.0.0.1:{cluster['us'].port}"})
                node.environment["QUAY_OVERRIDE_CONFIG"] = name
            try:
                cluster.start_now()
                if login is not None:
                    enrol(cluster, login)
                yield cluster
            finally:
                cluster.end(show_logs=False)
    finally:
        for store in stores.values():
            store.empty(path)


async def across(
    program: Path,
    cluster: Cluster,
    version: str,
    folder: Path,
    login: Login | None = None,
    authority: Authority | None = None,
) -> bool:
    """Run the suite through the proxy that reads in eu and writes in us; a run that used only one of them failed."""
    trusted = None if authority is None else authority.own.certificate
    tls = None if authority is None or trusted is None else Terminating(authority.sign("proxy"), trusted)
    proxy = SplitProxy(reads=cluster["eu"].port, writes=cluster["us"].port, tls=tls)
    async with trio.open_nursery() as nursery:
        port = await nursery.start(proxy.serve)
        passed = await trio.to_thread.run_sync(
            judge, program, f"127.0.0.1:{port}", version, folder, f"across-{version}", login, trusted
        )
        nursery.cancel_scope.cancel()
    print(f"  requests by node: us {proxy.counts[cluster['us'].port]}, eu {proxy.counts[cluster['eu'].port]}")
    return passed and all(proxy.counts.values())


def main() -> int:
    """Run everything, or with --registry judge a registry that runs already; exit code 0 only when all passed."""
    parser = argparse.ArgumentParser(prog="conformance", description="OCI conformance, judged by results.yaml")
    parser.add_argument("--registry", metavar="HOST:PORT", help="judge this plain-HTTP registry, start nothing")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="keep reports here")
    parser.add_argument("--accounts", action="store_true", help="on nodes with accounts, by tokens")
    parser.add_argument("--tls", action="store_true", help="over TLS, also through the proxy between the two nodes")
    options = parser.parse_args()
    login = Login("conformance", secrets.token_urlsafe(12)) if options.accounts else None
    program = build()
    with tempfile.TemporaryDirectory(prefix="antipode-conformance-") as scratch:
        results = (options.results or Path(scratch) / "results").resolve()
        if options.registry:
            judged = [judge(program, options.registry, v, results / v, v) for v in VERSIONS]
            return 0 if all(judged) else 1
        authority = Authority.make(Path(scratch) / "authority") if options.tls else None
        with nodes(Path(scratch), login, authority) as cluster:
            registry = f"127.0.0.1:{cluster['us'].port}"
            # A list, so that a failure does not hide what the next run has to say.
            trusted = None if authority is None else authority.own.certificate
            passed = [judge(program, registry, v, results / v, v, login, trusted) for v in VERSIONS]
            passed += [
                trio.run(across, program, cluster, v, results / f"across-{v}", login, authority) for v in VERSIONS
            ]
            if not all(passed):
                for node in cluster:
                    said = [line for line in node.log.splitlines() if '"logger": "antipode.access"' not in line]
                    print(f"--- node {node.name}, without its access lines ---", *said[-20:], sep="\n")
        print("conformance: " + ("passed" if all(passed) else "FAILED"))
        return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
