"""A systemd of our own: the real program as process 1 of a container made of namespaces, over a copy-on-write view of this machine.

It sees this machine's files, network and services; what it writes, and every process that it starts, is gone at its end.
Needs root, for namespaces and mounts, and systemd itself (a Debian package).
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from attrs import frozen

from scripts.services.processes import tail
from tests.services import repository_root

_SYSTEMD = Path("/lib/systemd/systemd")
_NAMESPACES = ("--pid", "--mount", "--uts", "--ipc", "--cgroup")
_START_SECONDS = 30.0
_COMMAND_SECONDS = 120.0

# $1: folder for /etc/antipode, $2: Python's folder, $3: its packages, $4: the repository, $5: units.
_BOOT = """
set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root
cd /mnt/root
# The machine's own units stay out, and its identity.
rm -rf etc/systemd/system etc/machine-id
mkdir etc/systemd/system
touch etc/machine-id
cp "$5"/antipode@.* etc/systemd/system/
printf '[Unit]\\nDescription=nothing but what is asked for\\nDefaultDependencies=no\\n' > etc/systemd/system/quiet.target
# Where the unit looks for them: the program, and what it runs on, which may be where ProtectHome= hides it.
mkdir -p etc/antipode opt/antipode/bin opt/antipode/packages opt/antipode/source opt/antipode/python
mount --bind "$1" etc/antipode
mount --bind "$2" opt/antipode/python
mount --bind "$3" opt/antipode/packages
mount --bind "$4" opt/antipode/source
cat > opt/antipode/bin/antipode <<'END'
#!/bin/sh
export PYTHONPATH=/opt/antipode/source:/opt/antipode/packages PYTHONDONTWRITEBYTECODE=1
export LD_LIBRARY_PATH=/opt/antipode/python/lib
exec /opt/antipode/python/bin/python3 -c 'from node.cli import main; main()' "$@"
END
chmod 755 opt/antipode/bin/antipode
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
for name in null zero full random urandom tty; do
    touch dev/$name
    mount --bind /dev/$name dev/$name
done
ln -s /proc/self/fd dev/fd
mkdir dev/shm dev/pts dev/mqueue
mount -t devpts devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
# Not chroot: a process in one may make no namespaces of users.
mkdir old
pivot_root . old
umount -l old
mount --make-rshared /
exec /usr/bin/env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin \\
    /lib/systemd/systemd --system --unit=quiet.target --show-status=false
"""


def _why_not() -> str:
    if not _SYSTEMD.exists():
        return "no systemd (Debian package)"
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return "needs root and unshare"
    tried = subprocess.run(["unshare", *_NAMESPACES, "--fork", "true"], check=False, capture_output=True)
    return "" if tried.returncode == 0 else "namespaces are not allowed here"


needs_systemd_as_root = pytest.mark.skipif(bool(_why_not()), reason=_why_not())


@frozen
class Machine:
    """What runs as process 1, by its id outside; `folder` is its /etc/antipode."""

    pid: int
    folder: Path

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command inside; its exit code is left to the caller."""
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--root", "--wd"]
        return subprocess.run(
            [*enter, *words],
            check=False,
            capture_output=True,
            text=True,
            timeout=_COMMAND_SECONDS,
            env={"PATH": os.defpath},
        )

    def systemctl(self, *words: str) -> None:
        """Run systemctl and wait until the job is done; fails unless it says that all went well."""
        ran = self.run("systemctl", *words)
        assert ran.returncode == 0, f"systemctl {' '.join(words)}: {ran.stderr}"

    def show(self, unit: str, name: str) -> str:
        """Return what systemd says of a unit, such as NRestarts."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).stdout.strip()

    def drop_in(self, unit: str, text: str) -> None:
        """Change a unit as an operator does: by a file beside it."""
        place = f"/etc/systemd/system/{unit}.d"
        script = f"mkdir -p {place} && cat > {place}/$(ls {place} 2>/dev/null | wc -l).conf <<'END'\n{text}\nEND"
        wrote = self.run("/bin/sh", "-c", script)
        assert wrote.returncode == 0, wrote.stderr
        self.systemctl("daemon-reload")


@contextmanager
def systemd_machine(folder: Path) -> Iterator[Machine]:
    """Run systemd while the context is open; `folder`/etc is its /etc/antipode, and everybody may read it."""
    etc, log = folder / "etc", folder / "systemd.log"
    etc.mkdir(exist_ok=True)
    etc.chmod(0o755)
    places = [
        etc,
        sys.base_prefix,
        sysconfig.get_path("purelib"),
        repository_root(),
        repository_root() / "deploy" / "systemd",
    ]
    words = ["unshare", *_NAMESPACES, "--fork", "--kill-child", "/bin/sh", "-c", _BOOT, "boot", *map(str, places)]
    with log.open("wb") as out, subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out) as outer:
        try:
            yield _booted(outer, etc, log)
        finally:
            # Process 1 goes with it, and with process 1 everything inside.
            outer.kill()


def _booted(outer: subprocess.Popen[bytes], etc: Path, log: Path) -> Machine:
    children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and outer.poll() is None:
        if pid := children.read_text().strip():
            machine = Machine(int(pid), etc)
            if machine.run("systemctl", "is-active", "quiet.target").stdout.strip() == "active":
                return machine
        time.sleep(0.05)
    pytest.fail(f"systemd does not start:\n{tail(log, 40)}", pytrace=False)
