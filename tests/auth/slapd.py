"""A directory of the test's own: OpenLDAP's server on loopback ports, with all that it has in a folder of the test.

    people       alice (admin), bob, gone (no longer with us), root (as the registry's own superuser), twin (twice), Upper.Case
    elsewhere    carol
    groups       devs (alice, bob, carol), ops (bob, as a uniqueMember), empty (nobody who is there)

Everybody's password there is `PASSWORD_THERE`.
"""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from attrs import define, field
from ldap3 import NONE, Connection, Server

from node.config.settings import LdapSettings
from scripts.services.processes import free_ports
from tests.certificates import Authority

PASSWORD_THERE = "a word of the directory"
_ADMIN, _ADMIN_PASSWORD = "cn=admin,dc=example,dc=com", "the administrator's"
_PEOPLE = (
    ("alice", "uid=alice,ou=people", "employeeType: admin"),
    ("bob", "uid=bob,ou=people", "businessCategory: CN=Said, OU=Groups,DC=example,DC=com"),
    ("gone", "uid=gone,ou=people", "title: gone"),
    ("root", "uid=root,ou=people", ""),
    ("twin", "cn=one,ou=people", ""),
    ("twin", "cn=two,ou=people", ""),
    ("Upper.Case", "uid=Upper.Case,ou=people", ""),
    ("private", "uid=private,ou=people", ""),
    ("carol", "uid=carol,ou=elsewhere", ""),
)
_SECONDS = 30.0


_GROUPS = """
dn: ou=groups,dc=example,dc=com
objectClass: organizationalUnit

dn: cn=devs,ou=groups,dc=example,dc=com
objectClass: groupOfNames
member: uid=alice,ou=people,dc=example,dc=com
member: UID=bob, OU=People,DC=example,DC=com
member: uid=carol,ou=elsewhere,dc=example,dc=com

dn: cn=ops,ou=groups,dc=example,dc=com
objectClass: groupOfUniqueNames
uniqueMember: uid=bob,ou=people,dc=example,dc=com

dn: cn=empty,ou=groups,dc=example,dc=com
objectClass: groupOfNames
member: uid=nobody,ou=people,dc=example,dc=com
"""


def _program() -> str:
    found = shutil.which("slapd", path="/usr/sbin:/usr/local/sbin:/usr/libexec") or shutil.which("slapd")
    if found is None:
        pytest.skip("no slapd (Debian package)")
    return found


def _free_port() -> int:
    (port,) = free_ports(1)
    return port


def _ldif() -> str:
    heads = ["dn: dc=example,dc=com\nobjectClass: organization\nobjectClass: dcObject\no: Example\ndc: example\n"]
    heads += [f"dn: ou={name},dc=example,dc=com\nobjectClass: organizationalUnit\n" for name in ("people", "elsewhere")]
    people = [
        f"dn: {dn},dc=example,dc=com\nobjectClass: inetOrgPerson\ncn: {dn[3:6]}\nsn: {uid}\nuid: {uid}\n"
        f"mail: {uid}@example.com\nuserPassword: {PASSWORD_THERE}\n{more}\n".replace("\n\n", "\n")
        for uid, dn, more in _PEOPLE
    ]
    return "\n".join((*heads, *people)) + _GROUPS


@define(eq=False)
class Slapd:
    """The server. `authority` has signed its certificate, which is for localhost."""

    folder: Path
    authority: Authority
    port: int = field(factory=_free_port)
    tls_port: int = field(factory=_free_port)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def prepare(self) -> None:
        """Write its configuration and fill it."""
        pair = self.authority.sign("slapd", names="DNS:localhost")
        (self.folder / "data").mkdir()
        # A copy: a machine's rules for the system's own server may forbid it other folders.
        shutil.copy(_program(), self.folder / "slapd")
        schemas = Path("/etc/ldap/schema")
        (self.folder / "slapd.conf").write_text(
            "".join(f"include {schemas / name}.schema\n" for name in ("core", "cosine", "inetorgperson"))
            + f"modulepath /usr/lib/ldap\nmoduleload back_mdb\npidfile {self.folder}/pid\nargsfile {self.folder}/args\n"
            f"TLSCACertificateFile {self.authority.own.certificate}\nTLSCertificateFile {pair.certificate}\n"
            f"TLSCertificateKeyFile {pair.key}\ndisallow bind_anon\n"
            f'database mdb\nmaxsize 10485760\nsuffix "dc=example,dc=com"\nrootdn "{_ADMIN}"\n'
            f'rootpw "{_ADMIN_PASSWORD}"\ndirectory {self.folder}/data\n'
        )
        (self.folder / "people.ldif").write_text(_ldif())
        self._run("-T", "add", "-l", str(self.folder / "people.ldif"))

    def _run(self, *words: str) -> None:
        done = subprocess.run(
            [self.folder / "slapd", *words, "-f", self.folder / "slapd.conf"],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        """Start it, and return when it listens."""
        urls = f"ldap://127.0.0.1:{self.port}/ ldaps://127.0.0.1:{self.tls_port}/"
        self._process = subprocess.Popen(
            [self.folder / "slapd", "-f", self.folder / "slapd.conf", "-h", urls, "-d", "0"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + _SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.tls_port), 1).close()
            except OSError:
                assert self._process.poll() is None, "slapd has ended"
                assert time.monotonic() < deadline, "slapd does not listen"
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        """Stop it, if it runs."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(_SECONDS)
            self._process = None

    def write_group(self, name: str, *people: str, groups: Sequence[str] = ()) -> None:
        """Make a group of these people and groups below ou=groups, in place of the one that it was."""
        entry, everybody = f"cn={name},ou=groups,dc=example,dc=com", ("nobody", *people)
        with self._administrator() as connection:
            connection.delete(entry)
            members = [f"uid={uid},ou=people,dc=example,dc=com" for uid in everybody]
            members += [f"CN={inner}, ou=groups,dc=example,dc=com" for inner in groups]
            assert connection.add(entry, "groupOfNames", {"member": members}), connection.result

    def write_people(self, *names: str) -> None:
        """Add people of these names who are not there yet."""
        with self._administrator() as connection:
            for uid in names:
                entry = {"cn": uid, "sn": uid, "uid": uid, "userPassword": PASSWORD_THERE}
                connection.add(f"uid={uid},ou=people,dc=example,dc=com", "inetOrgPerson", entry)
                assert connection.result["description"] in ("success", "entryAlreadyExists"), connection.result

    def delete_group(self, name: str) -> None:
        """Take a group away."""
        with self._administrator() as connection:
            assert connection.delete(f"cn={name},ou=groups,dc=example,dc=com"), connection.result

    @contextmanager
    def _administrator(self) -> Iterator[Connection]:
        connection = Connection(Server("127.0.0.1", self.port, get_info=NONE), _ADMIN, _ADMIN_PASSWORD)
        assert connection.bind(read_server_info=False), connection.result
        try:
            yield connection
        finally:
            connection.unbind()

    def settings(self, scheme: str = "ldap", **changes: object) -> LdapSettings:
        """Return what a node has to know of it."""
        port = self.tls_port if scheme == "ldaps" else self.port
        given = {
            "uri": f"{scheme}://localhost:{port}",
            "host": "localhost",
            "port": port,
            "secure": scheme == "ldaps",
            "base_dn": "dc=example,dc=com",
            "user_rdn": "ou=people",
            "admin_dn": _ADMIN,
            "admin_password": _ADMIN_PASSWORD,
            "user_filter": "(!(title=gone))",
            "superuser_filter": "(employeeType=admin)",
            "ca_file": str(self.authority.own.certificate),
        }
        return LdapSettings(**{**given, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slapd]:
    """A filled directory, for the tests of one file."""
    folder = tmp_path_factory.mktemp("slapd")
    made = Slapd(folder, Authority.make(folder / "authority"))
    made.prepare()
    made.start()
    try:
        yield made
    finally:
        made.stop()
