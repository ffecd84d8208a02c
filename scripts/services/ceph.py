"""Ceph's object gateway for tests: one monitor, one store in memory, and a gateway with its own zone for us and for eu.

No manager, no cephx, no systemd; everything is below one folder. Works as root and as a plain user.
"""

import json
import random
import secrets
import shutil
import signal
import time
import uuid
from pathlib import Path

from .processes import Daemon, ServiceError, accepts_connections, call, free_ports
from .s3_request import s3_status

PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "ceph", "radosgw-admin", "monmaptool", "openssl")
ZONES = ("us", "eu")
_STORE_BYTES = 12 * 1024**3  # a ceiling: memory is taken only for what is stored

_CONFIGURATION = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon_v2},v1:127.0.0.1:{mon_v1}]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind port min = {bind_from}
ms bind port max = {bind_to}
auth cluster required = none
auth service required = none
auth client required = none
# Without cephx a gateway still asks the monitor for a secure connection and hangs 300 s, unless told so:
ms mon client mode = crc
run dir = {home}
# No admin sockets: their paths may be too long, and nothing here asks them.
admin socket =
pid file = {home}/$name.pid
log file = {home}/$name.ceph.log
log to stderr = false
crash dir = {home}/crash
keyring = {home}/keyring
mon allow pool size one = true
mon warn on pool no redundancy = false
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon max pg per osd = 1000

[mon]
mon data = {home}/mon
mon data avail crit = 1
# Boot is a row of small changes, and each waits for this:
paxos propose interval = 0.05
mon cluster log file = {home}/cluster.log

[osd]
osd data = {home}/osd
osd objectstore = memstore
memstore device bytes = {store_bytes}
osd class dir = {classes}
# A killed gateway's watch would hold up its next start for 30 s.
osd client watch timeout = 5

[client]
# Its lock, left by a killed gateway, makes the next one hang when asked to stop.
rgw enable lc threads = false
rgw dynamic resharding = false
rgw swift account in url = false
rgw enable apis = s3, swift, swift_auth, admin
# Deleted objects give their memory back within seconds, not after the default two hours.
rgw gc obj min wait = 5
rgw gc processor period = 10
"""

# Without tcp_nodelay every small XML answer waits 43 ms for the client's delayed ACK.
_GATEWAY = """
[client.rgw.{zone}]
rgw frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1 ssl_endpoint=127.0.0.1:{tls_port} ssl_certificate={certificate}
rgw realm = {zone}
rgw zonegroup = {zone}
rgw zone = {zone}
rgw swift url = http://127.0.0.1:{port}
rgw data = {home}/rgw-{zone}
"""


def missing_programs() -> list[str]:
    """Return which of the programs that Ceph needs are not on this machine."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


class Ceph:
    """A running cluster with two stores that share nothing a client can see: own zone, pools, user and bucket each."""

    def __init__(self, folder: Path) -> None:
        """Make the cluster below `folder` and wait until both gateways serve; takes 4 to 10 seconds.

        Raises:
            ServiceError: a program is missing, or a part did not start; the message has the end of its log.

        """
        if missing := missing_programs():
            raise ServiceError(f"Ceph: not on this machine: {', '.join(missing)}")
        classes = next(iter(Path("/usr/lib").glob("**/rados-classes/libcls_rgw.so")), None)
        if classes is None:
            raise ServiceError("Ceph: no libcls_rgw.so below /usr/lib (Debian package radosgw or ceph-osd)")
        self.home = folder / "ceph"
        self.home.mkdir(mode=0o700)
        self.configuration = self.home / "ceph.conf"
        self.gateways: dict[str, Daemon] = {}
        self._backend: list[Daemon] = []
        self._fsid = str(uuid.uuid4())
        mon_v2, mon_v1, us, eu, us_tls, eu_tls = free_ports(6)
        self.ports = {"us": us, "eu": eu}
        self.tls_ports = {"us": us_tls, "eu": eu_tls}
        self.keys = {zone: (secrets.token_hex(10).upper(), secrets.token_urlsafe(30)) for zone in ZONES}
        # Where the store looks for its eight own ports; two clusters that meet here step over each other's.
        bind_from = random.randrange(12000, 19000)  # noqa: S311 - a spread, not a secret
        text = _CONFIGURATION.format(
            fsid=self._fsid,
            mon_v2=mon_v2,
            mon_v1=mon_v1,
            bind_from=bind_from,
            bind_to=bind_from + 500,
            home=self.home,
            store_bytes=_STORE_BYTES,
            classes=classes.parent,
        )
        for zone in ZONES:
            ports = {"port": self.ports[zone], "tls_port": self.tls_ports[zone]}
            text += _GATEWAY.format(zone=zone, home=self.home, certificate=self.home / "tls" / "server.pem", **ports)
        self.configuration.write_text(text)
        try:
            self._make_certificate()
            self._start_monitor(mon_v2, mon_v1)
            self._start_store()
            for zone in ZONES:
                self._make_zone(zone)
                self._start_gateway(zone)
            for zone in ZONES:
                self._wait_for_bucket(zone)
        except BaseException:
            self.stop()
            raise

    @property
    def ca(self) -> Path:
        """The PEM file of the authority that signed the TLS endpoints' certificate."""
        return self.home / "tls" / "ca.pem"

    def stores(self) -> list[dict[str, str | None]]:
        """Return the stores in the shape of ANTIPODE_TEST_S3."""

        def store(name: str, zone: str, endpoint: str, ca: Path | None) -> dict[str, str | None]:
            access_key, secret_key = self.keys[zone]
            return {
                "name": name,
                "endpoint": endpoint,
                "access_key": access_key,
                "secret_key": secret_key,
                "bucket": f"{zone}-blobs",
                "ca": None if ca is None else str(ca),
            }

        plain = [store(zone, zone, f"http://127.0.0.1:{self.ports[zone]}", None) for zone in ZONES]
        secure = [store(f"{zone}-tls", zone, f"https://127.0.0.1:{self.tls_ports[zone]}", self.ca) for zone in ZONES]
        return [*plain, *secure]

    def stop(self) -> None:
        """Stop everything: gateways first. What was stored is lost."""
        for daemon in self.gateways.values():
            daemon.ask_to_stop()
        for daemon in [*self.gateways.values(), *reversed(self._backend)]:
            daemon.stop()

    def _run(self, *words: str | Path) -> str:
        return call([words[0], "-c", self.configuration, *words[1:]], cwd=self.home)

    def _daemon(self, name: str, *words: str) -> Daemon:
        # By force: an orderly end can hang (a lock that a killed neighbour left), and there is nothing to keep.
        argv: list[str | Path] = [words[0], "-c", self.configuration, "-f", *words[1:]]
        return Daemon(name, argv, self.home, stop_signal=signal.SIGKILL)

    def _make_certificate(self) -> None:
        """Make a certificate authority of our own and a certificate for 127.0.0.1 and localhost signed by it."""
        folder = self.home / "tls"
        folder.mkdir()
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")

        def openssl(*words: str) -> None:
            call(["openssl", *words], cwd=folder)

        authority = ("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
        names = ("-subj", "/CN=Antipode test authority")
        openssl("req", "-x509", *curve, "-days", "30", *names, *authority, "-keyout", "ca.key", "-out", "ca.pem")
        openssl("req", *curve, "-subj", "/CN=127.0.0.1", "-keyout", "server.key", "-out", "server.csr")
        (folder / "server.ext").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth\n")
        signer = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "30", "-extfile", "server.ext")
        openssl("x509", "-req", "-in", "server.csr", *signer, "-out", "server.crt")
        (folder / "server.pem").write_text((folder / "server.crt").read_text() + (folder / "server.key").read_text())

    def _start_monitor(self, mon_v2: int, mon_v1: int) -> None:
        address = f"[v2:127.0.0.1:{mon_v2},v1:127.0.0.1:{mon_v1}]"
        monmap = self.home / "monmap"
        call(["monmaptool", "--create", "--fsid", self._fsid, "--addv", "a", address, monmap], cwd=self.home)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap)
        monitor = self._daemon("ceph-mon", "ceph-mon", "-i", "a")
        self._backend.append(monitor)
        monitor.wait_ready(lambda: accepts_connections(mon_v2))

    def _start_store(self) -> None:
        identity = str(uuid.uuid4())
        self._run("ceph", "--connect-timeout", "30", "osd", "new", identity)
        (self.home / "osd").mkdir()
        # Another identity than the one announced, and the monitor never marks it up.
        self._run("ceph-osd", "--mkfs", "-i", "0", "--osd-uuid", identity)
        store = self._daemon("ceph-osd", "ceph-osd", "-i", "0")
        self._backend.append(store)

        def is_up() -> bool:
            status = json.loads(self._run("ceph", "--connect-timeout", "30", "osd", "stat", "--format", "json"))
            return bool(status["num_up_osds"] == 1)

        store.wait_ready(is_up)

    def _make_zone(self, zone: str) -> None:
        access_key, secret_key = self.keys[zone]
        place = [f"--rgw-realm={zone}", f"--rgw-zonegroup={zone}", f"--rgw-zone={zone}"]
        self._run("radosgw-admin", "realm", "create", place[0])
        self._run("radosgw-admin", "zonegroup", "create", *place[:2], "--master", "--default")
        self._run("radosgw-admin", "zone", "create", *place, "--master", "--default")
        self._run("radosgw-admin", "period", "update", "--commit", *place)
        user = ["--uid=antipode", "--display-name=antipode", f"--access-key={access_key}", f"--secret-key={secret_key}"]
        self._run("radosgw-admin", "user", "create", *place, *user)

    def _start_gateway(self, zone: str) -> None:
        (self.home / f"rgw-{zone}").mkdir(exist_ok=True)
        self.gateways[zone] = self._daemon(f"rgw-{zone}", "radosgw", "-n", f"client.rgw.{zone}")

    def _wait_for_bucket(self, zone: str) -> None:
        """Wait until the gateway listens, then make its bucket: the first request that goes all the way down."""
        gateway, port = self.gateways[zone], self.ports[zone]
        gateway.wait_ready(lambda: accepts_connections(port))
        deadline = time.monotonic() + 30
        status = s3_status("PUT", port, f"/{zone}-blobs", *self.keys[zone])
        while status in (500, 503) and time.monotonic() < deadline:
            time.sleep(0.1)
            status = s3_status("PUT", port, f"/{zone}-blobs", *self.keys[zone])
        if status != 200:
            raise ServiceError(f"Ceph: bucket {zone}-blobs could not be made: status {status}")
