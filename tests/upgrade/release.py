"""The last release that this clone's history has: its files, and nodes that run them."""

import io
import re
import subprocess
import tarfile
from pathlib import Path

from attrs import frozen

from tests.cluster import Node
from tests.services import repository_root

_SECONDS = 60.0
_SUBJECT = re.compile(r"^Release (\d+\.\d+\.\d+)$")


class NoRelease(Exception):
    """The clone knows no release before its own commit. The message says what would help."""


@frozen
class Release:
    """A release: `commit` is what was published as `version`."""

    version: str
    commit: str

    def read(self, path: str) -> str:
        """Return the text of a file as it was released."""
        return _git("show", f"{self.commit}:{path}").decode()

    def migrations(self) -> dict[str, str]:
        """Return the files of its schema: name -> SQL."""
        folder = "node/records/schema/"
        names = _git("ls-tree", "--name-only", self.commit, folder).decode().split()
        return {name.removeprefix(folder): self.read(name) for name in names if name.endswith(".sql")}

    def unpack(self, folder: Path) -> Path:
        """Write the release's files below `folder` and return where they are."""
        home = folder / f"release-{self.version}"
        home.mkdir()
        with tarfile.open(fileobj=io.BytesIO(_git("archive", "--format=tar", self.commit))) as files:
            files.extractall(home, filter="data")
        # What says the version of a node is what was installed: this stands before it.
        facts = home / f"antipode-{self.version}.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: antipode\nVersion: {self.installed_as}\n")
        return home

    @property
    def installed_as(self) -> str:
        """The version that its nodes report here, another one than this tree's."""
        return f"{self.version}+released"


def last_release() -> Release:
    """Return the newest release before the commit that is checked out. Raises NoRelease."""
    try:
        # The commit itself is left out: while it is released, the release before is the last.
        lines = _git("log", "--format=%H %s", "--skip=1", "HEAD").decode().splitlines()
    except (OSError, subprocess.SubprocessError) as error:
        raise NoRelease(f"no history to take it from: {error}") from error
    for line in lines:
        commit, _, subject = line.partition(" ")
        if match := _SUBJECT.match(subject):
            return Release(match[1], commit)
    shallow = _git("rev-parse", "--is-shallow-repository").strip() == b"true"
    reason = (
        "the clone is shallow: `git fetch --unshallow` brings it" if shallow else "no commit is named Release X.Y.Z"
    )
    raise NoRelease(f"no release in the {len(lines)} commits before this one; {reason}")


def other_pins(release: Release) -> dict[str, tuple[str, str]]:
    """Return the packages that a release pins otherwise than this tree: name -> (its pin, ours, or nothing)."""
    ours = _pins((repository_root() / "constraints.txt").read_text())
    return {
        name: (pin, ours.get(name, "nothing"))
        for name, pin in _pins(release.read("constraints.txt")).items()
        if ours.get(name) != pin
    }


def _pins(text: str) -> dict[str, str]:
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return {name.lower(): pin for name, found, pin in (line.partition("==") for line in lines) if found}


def run_release(node: Node, home: Path) -> None:
    """Let a node run the release unpacked at `home` from its next start on, with the packages of this tree."""
    node.environment["PYTHONPATH"] = str(home)


def run_this_tree(node: Node) -> None:
    """Let a node run this tree from its next start on."""
    node.environment.pop("PYTHONPATH", None)


def _git(*words: str) -> bytes:
    # A clone that belongs to another user, as in a container, is read all the same.
    command = ["git", "-c", "safe.directory=*", "-C", str(repository_root()), *words]
    return subprocess.run(command, check=True, capture_output=True, timeout=_SECONDS).stdout
