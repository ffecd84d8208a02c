"""haproxy and nginx before nodes of a test, configured by the examples in deploy/ with other addresses and without TLS.

`doors`: name -> (port, ports of the servers that the example names): {"streams": (20701, {"us": 20702, "eu": 20703})}.
"""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from scripts.services.processes import Daemon, accepts_connections
from tests.services import repository_root

Doors = Mapping[str, tuple[int, Mapping[str, int]]]

needs_haproxy = pytest.mark.skipif(shutil.which("haproxy") is None, reason="no haproxy (Debian package)")
needs_nginx = pytest.mark.skipif(shutil.which("nginx") is None, reason="no nginx (Debian package nginx-light)")


def haproxy_configuration(doors: Doors) -> str:
    """Return deploy/haproxy/haproxy.cfg for these doors."""
    text = (repository_root() / "deploy" / "haproxy" / "haproxy.cfg").read_text()
    head, _, rest = text.partition("frontend registry")
    parts = [head.replace("log stdout format raw local0", "log stdout format raw local0 warning")]
    for door, (port, servers) in doors.items():
        own = re.sub(r"\n    bind .*", f"\n    bind 127.0.0.1:{port}", f"frontend registry{rest}")
        for name in ("registry", "nodes", "manifests", "unchecked"):
            own = re.sub(rf"(frontend |backend |nbsrv\(|track ){name}\b", rf"\g<1>{name}-{door}", own)
        for name, at in servers.items():
            own = re.sub(rf"(\n    server {name}) \S+", rf"\g<1> 127.0.0.1:{at}", own)
        parts.append(own)
    return "\n".join(parts)


def nginx_configuration(doors: Doors, folder: Path) -> str:
    """Return deploy/nginx/nginx.conf for these doors; what nginx writes goes below `folder`."""
    text = (repository_root() / "deploy" / "nginx" / "nginx.conf").read_text()
    head, _, rest = text.partition("    upstream nodes")
    places = [f"    {kind}_temp_path {folder / kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")]
    # Workers of another user could not enter a test's folders.
    user = "user root;\n" if os.geteuid() == 0 else ""
    parts = [
        f"{user}daemon off;\npid {folder / 'nginx.pid'};\n{head.replace('http {', chr(10).join(['http {', *places]))}"
    ]
    for door, (port, servers) in doors.items():
        own = re.sub(r"\n        ssl_\w+ .*", "", f"    upstream nodes{rest.rstrip().removesuffix('}')}")
        own = re.sub(r"\n        listen 443.*", f"\n        listen 127.0.0.1:{port};", own)
        own = own.replace("upstream nodes", f"upstream nodes-{door}").replace("http://nodes", f"http://nodes-{door}")
        for name, at in servers.items():
            own = re.sub(rf"(\n        server) {name}\.\S+:\d+", rf"\g<1> 127.0.0.1:{at}", own)
        parts.append(own)
    return "\n".join([*parts, "}"])


@contextmanager
def haproxy(folder: Path, doors: Doors, *, silence: int = 60) -> Iterator[None]:
    """Run haproxy before nodes while the context is open. `silence`: seconds that a node may say nothing."""
    file = folder / "haproxy.cfg"
    file.write_text(haproxy_configuration(doors).replace("timeout server 60s", f"timeout server {silence}s"))
    with _running("haproxy", ["haproxy", "-db", "-f", file], folder, doors):
        yield


@contextmanager
def nginx(folder: Path, doors: Doors, *, silence: int = 60, quick: int = 20) -> Iterator[None]:
    """Run nginx before nodes while the context is open.

    Seconds that a node may say nothing: `silence`, and `quick` where it should answer at once.
    """
    file = folder / "nginx.conf"
    whole = nginx_configuration(doors, folder)
    whole = whole.replace("proxy_read_timeout 60s", f"proxy_read_timeout {silence}s")
    file.write_text(whole.replace("proxy_read_timeout 20s", f"proxy_read_timeout {quick}s"))
    with _running("nginx", ["nginx", "-p", folder, "-c", file], folder, doors):
        yield


@contextmanager
def _running(name: str, words: list[str | Path], folder: Path, doors: Doors) -> Iterator[None]:
    daemon = Daemon(name, words, folder)
    try:
        daemon.wait_ready(lambda: all(accepts_connections(port) for port, _ in doors.values()))
        yield
    finally:
        daemon.stop()
