"""What the kernel knows of processes: the processor's time they took, the memory they hold, and who they are."""

import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the user and system seconds that these processes have taken, all their threads together."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / _TICKS


def resident_bytes(pid: int, *, peak: bool = False) -> int:
    """Return the memory that a process holds now, or the most that it ever held since `reset_peak`."""
    found = re.search(rf"{'VmHWM' if peak else 'VmRSS'}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return 0 if found is None else int(found.group(1)) * 1024


def reset_peak(pid: int) -> None:
    """Let the peak of `resident_bytes` begin anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def listener(port: int) -> int | None:
    """Return the process that listens on a port of this machine, where we may look into it."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    sockets = {
        f"socket:[{fields[9]}]"
        for fields in map(str.split, lines)
        if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port
    }
    for pid in _pids():
        try:
            if any(str(descriptor.readlink()) in sockets for descriptor in Path(f"/proc/{pid}/fd").iterdir()):
                return pid
        except OSError:
            continue  # it has ended, or is somebody else's
    return None


def store_pids(port: int) -> tuple[int, ...]:
    """Return the processes of the Ceph cluster whose gateway listens on this port; none where they cannot be seen."""
    gateway = listener(port)
    if gateway is None:
        return ()
    configuration = _after("-c", _command(gateway))
    if configuration is None:
        return (gateway,)
    others = (
        pid
        for pid in _pids()
        if pid != gateway and configuration in (command := _command(pid)) and "ceph-osd" in command[0]
    )
    return (gateway, *others)


def collect_garbage(port: int) -> None:
    """Let Ceph's gateway that listens on this port be rid at once of what was deleted; it would else do it some seconds later.

    Where it cannot be seen, or is not Ceph's, nothing is done.
    """
    gateway = listener(port)
    words = [] if gateway is None else _command(gateway)
    configuration, name = _after("-c", words), _after("-n", words)
    if configuration is not None and name is not None:
        command = ["radosgw-admin", "-c", configuration, "-n", name, "gc", "process", "--include-all"]
        subprocess.run(command, check=True, capture_output=True, timeout=60)


def _after(option: str, words: Sequence[str]) -> str | None:
    return words[words.index(option) + 1] if option in words else None


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _command(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []
