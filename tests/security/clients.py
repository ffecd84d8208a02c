"""The clients that people have, and the commands with which each of them logs in, pushes, pulls and copies beside what is there.

All of them trust the file that SSL_CERT_FILE names and keep what they know of logins in a folder of their own. Words in braces:
`host`, `user`, `password`; `ref` and `other` are HOST/NAME:v1, in two repositories, and `repository` is HOST/NAME of the first;
`layout` is an OCI layout with the tag v1 and `image` its configuration's digest; `home` is the client's folder; `us` and `eu` are
the two hosts.
"""

import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import DEVNULL, STDOUT
from tempfile import TemporaryDirectory
from typing import IO

import trio
from attrs import field, frozen

_READY_SECONDS = 60.0
_RUN_SECONDS = 120.0
_NONE: Mapping[str, str] = {}


@frozen
class Client:
    """What to run, as lines for a shell."""

    name: str
    program: str
    login: str
    """The password is on standard input."""
    push: str
    pull: str
    beside: str | None
    """Copies `ref` to `other`, in the same registry; None where it has no such command."""
    version: str = "{program} --version"
    prepare: str = "true"
    daemon: str | None = None
    """Runs while the client is used; then `ready` succeeds soon."""
    ready: str = "true"
    needs: tuple[str, ...] = ()
    """Further programs."""
    pull_as_nobody: str | None = None
    """Where it is not the same without a login."""
    login_asks: bool = True
    """Whether a login asks the registry; others only learn at the next command that a password is wrong."""
    settings: Mapping[str, str] = field(factory=dict)
    """Further variables of the environment."""

    @property
    def here(self) -> bool:
        """Whether it is installed."""
        return all(shutil.which(program) for program in (self.program, *self.needs))


_VFS = "--root {home}/root --runroot {home}/runroot --storage-driver vfs"
_PODMAN = f"podman {_VFS} --cgroup-manager cgroupfs --events-backend file"
_BUILDAH = f"buildah {_VFS}"
_DOCKER = "docker -H unix://{home}/docker.sock"
_BUILDCTL = "buildctl --addr unix://{home}/buildkit.sock"
_BUILD = f"{_BUILDCTL} build --progress plain --frontend dockerfile.v0 --local context={{home}}/context"
CTR = "ctr -a {home}/containerd.sock"
_CTR_REMOTE = "--hosts-dir {home}/hosts -u '{user}:{password}'"


def _containers(command: str) -> Mapping[str, str]:
    """Return what podman and buildah have in common."""
    return {
        "prepare": f"{command} pull oci:{{layout}}:v1",
        "login": f"{command} login -u '{{user}}' --password-stdin {{host}}",
        "push": f"{command} push {{image}} docker://{{ref}}",
        "beside": f"{command} push {{image}} docker://{{other}}",
        "pull": f"{command} rmi -af && {command} pull docker://{{ref}}",
    }


_CHART = (
    "name=$(basename {repository}) && mkdir -p {home}/$name"
    " && printf 'apiVersion: v2\\nname: %s\\nversion: 1.0.0\\n' $name > {home}/$name/Chart.yaml"
    " && helm package {home}/$name -d {home}"
)
"""A chart is called as the last part of its repository, and its tag is its version."""


CLIENTS = (
    Client(
        "skopeo",
        "skopeo",
        login="skopeo login -u '{user}' --password-stdin {host}",
        push="skopeo --insecure-policy copy oci:{layout}:v1 docker://{ref}",
        pull="skopeo --insecure-policy copy docker://{ref} oci:{home}/back:v1",
        beside="skopeo --insecure-policy copy docker://{ref} docker://{other}",
    ),
    Client("podman", "podman", **_containers(_PODMAN)),  # type: ignore[arg-type]
    Client("buildah", "buildah", **_containers(_BUILDAH)),  # type: ignore[arg-type]
    Client(
        "docker",
        "docker",
        needs=("dockerd", "skopeo"),
        version=f"{_DOCKER} version --format '{{{{{{{{.Server.Version}}}}}}}}'",
        daemon="dockerd --data-root {home}/data --exec-root {home}/exec -H unix://{home}/docker.sock -p {home}/docker.pid"
        " --iptables=false --ip6tables=false --bridge=none --storage-driver=vfs",
        ready=f"{_DOCKER} info",
        prepare="rm -f {home}/image.tar"
        " && skopeo --insecure-policy copy oci:{layout}:v1 docker-archive:{home}/image.tar:antipode:v1"
        f" && {_DOCKER} load -i {{home}}/image.tar",
        login=f"{_DOCKER} login -u '{{user}}' --password-stdin {{host}}",
        push=f"{_DOCKER} tag {{image}} {{ref}} && {_DOCKER} push {{ref}}",
        beside=f"{_DOCKER} tag {{image}} {{other}} && {_DOCKER} push {{other}}",
        pull=f"{_DOCKER} rmi -f {{image}}; {_DOCKER} pull {{ref}}",
    ),
    Client(
        "crane",
        "crane",
        version="crane version",
        login_asks=False,
        login="crane auth login -u '{user}' --password-stdin {host}",
        push="crane push {layout} {ref}",
        pull="crane pull {ref} {home}/back.tar",
        beside="crane copy {ref} {other}",
    ),
    Client(
        "regctl",
        "regctl",
        version="regctl version --format '{{{{.VCSTag}}}}'",
        settings={"REGCTL_CONFIG": "{home}/regctl.json"},
        login="regctl registry login -u '{user}' --pass-stdin {host}",
        push="regctl image copy ocidir://{layout}:v1 {ref}",
        pull="regctl image copy {ref} ocidir://{home}/back:v1",
        beside="regctl image copy {ref} {other}",
    ),
    Client(
        "oras",
        "oras",
        version="oras version",
        login="oras login -u '{user}' --password-stdin {host}",
        push="oras cp --from-oci-layout {layout}:v1 {ref}",
        pull="oras cp {ref} --to-oci-layout {home}/back:v1",
        beside="oras cp {ref} {other}",
    ),
    Client(
        "helm",
        "helm",
        version="helm version --template '{{{{.Version}}}}'",
        login="helm registry login {host} -u '{user}' --password-stdin --ca-file $SSL_CERT_FILE",
        push=f"{_CHART} && helm push {{home}}/$name-1.0.0.tgz oci://$(dirname {{repository}}) --ca-file $SSL_CERT_FILE",
        pull="mkdir -p {home}/back && helm pull oci://{repository} --version 1.0.0 -d {home}/back --ca-file $SSL_CERT_FILE",
        beside=None,
    ),
    Client(
        "BuildKit (buildctl)",
        "buildctl",
        needs=("buildkitd", "docker"),
        version="buildkitd --version",
        daemon="buildkitd --root {home}/root --addr unix://{home}/buildkit.sock --config {home}/buildkitd.toml",
        ready=f"{_BUILDCTL} debug workers",
        # An image of one new layer, and what is built on top of it.
        prepare="mkdir -p {home}/context {home}/first {home}/next && head -c 3000000 /dev/urandom > {home}/context/layer"
        " && printf 'FROM scratch\\nCOPY layer /layer\\n' > {home}/first/Dockerfile",
        # It has no login of its own: it goes by docker's. There is no dockerd, so the program logs in by itself.
        login="docker -H unix://{home}/none.sock login -u '{user}' --password-stdin {host}",
        push=f"{_BUILD} --local dockerfile={{home}}/first --output type=image,name={{ref}},push=true",
        pull="mkdir -p {home}/context {home}/next && date > {home}/context/layer"
        " && printf 'FROM %s\\nCOPY layer /next\\n' {ref} > {home}/next/Dockerfile"
        f" && {_BUILDCTL} prune --all && {_BUILD} --local dockerfile={{home}}/next --output type=oci,dest={{home}}/back.tar",
        beside="printf 'FROM %s\\nCOPY layer /next\\n' {ref} > {home}/next/Dockerfile"
        f" && {_BUILD} --local dockerfile={{home}}/next --output type=image,name={{other}},push=true",
    ),
    Client(
        "containerd (ctr)",
        "ctr",
        needs=("containerd",),
        login_asks=False,
        daemon="containerd --config {home}/containerd.toml",
        ready=f"{CTR} version",
        # It keeps no logins: names and passwords go with each command.
        login='mkdir -p {home}/hosts/{host} && printf \'server = "https://{host}"\\n[host."https://{host}"]\\nca = "%s"\\n\''
        " $SSL_CERT_FILE > {home}/hosts/{host}/hosts.toml",
        prepare="tar -C {layout} -cf {home}/image.tar . "
        f"&& {CTR} images import --base-name antipode --digests --no-unpack {{home}}/image.tar "
        f"&& {CTR} images ls -q",
        push=f"{CTR} images push {_CTR_REMOTE} {{ref}} antipode@{{manifest}}",
        pull=f"{CTR} images pull --snapshotter native {_CTR_REMOTE} {{ref}}",
        pull_as_nobody=f"{CTR} images pull --snapshotter native --hosts-dir {{home}}/hosts {{ref}}",
        beside=f"{CTR} content fetch {_CTR_REMOTE} {{ref}} && {CTR} images push {_CTR_REMOTE} {{other}} antipode@{{manifest}}",
    ),
)

_CONTAINERD = """
version = 2
root = "{home}/root"
state = "{home}/state"
disabled_plugins = [
  "io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs", "io.containerd.internal.v1.opt",
]
[grpc]
address = "{home}/containerd.sock"
"""

_BUILDKITD = """
[worker.oci]
  snapshotter = "native"
[worker.containerd]
  enabled = false
[registry."{us}"]
  http = false
  ca = ["{authority}"]
[registry."{eu}"]
  http = false
  ca = ["{authority}"]
"""
"""Without an entry it speaks plain HTTP to loopback addresses."""


@frozen
class Bench:
    """One client, ready to be used."""

    client: Client
    words: Mapping[str, str]
    environment: Mapping[str, str]

    async def run(self, line: str, given: str = "", words: Mapping[str, str] = _NONE) -> tuple[int, str]:
        """Run a line; return its exit code and all that it said."""
        filled = line.format(**{**self.words, **words})
        with trio.fail_after(_RUN_SECONDS):
            done = await trio.run_process(
                ["sh", "-c", filled],
                stdin=given.encode(),
                capture_stdout=True,
                stderr=STDOUT,
                check=False,
                env=dict(self.environment),
            )
        return done.returncode, done.stdout.decode(errors="replace")


@asynccontextmanager
async def bench(client: Client, words: Mapping[str, str], environment: Mapping[str, str]) -> AsyncIterator[Bench]:
    """Start what the client needs, in a folder of its own, and end it afterwards."""
    # Podman and containerd put sockets there, whose paths must be short: a test's own folder has a long name.
    with TemporaryDirectory(prefix="antipode-", ignore_cleanup_errors=True) as folder:
        async with _bench(client, Path(folder), words, environment) as made:
            yield made


@asynccontextmanager
async def _bench(
    client: Client, home: Path, words: Mapping[str, str], environment: Mapping[str, str]
) -> AsyncIterator[Bench]:
    (home / "containerd.toml").write_text(_CONTAINERD.format(home=home))
    hosts = {name: words[name] for name in ("us", "eu")}
    (home / "buildkitd.toml").write_text(_BUILDKITD.format(authority=environment["SSL_CERT_FILE"], **hosts))
    (home / "auth.json").write_text("{}")
    known = {**words, "home": str(home), "program": client.program}
    own = {
        **environment,
        "HOME": str(home),
        "XDG_RUNTIME_DIR": str(home),
        "DOCKER_CONFIG": str(home / "docker"),
        "REGISTRY_AUTH_FILE": str(home / "auth.json"),
        **{name: value.format(**known) for name, value in client.settings.items()},
    }
    made = Bench(client, known, own)
    if client.daemon is None:
        yield made
        return
    with (home / "daemon.log").open("wb") as log:
        async with trio.open_nursery() as nursery:
            process = await nursery.start(_daemon, client.daemon.format(**known).split(), own, log)
            try:
                with trio.fail_after(_READY_SECONDS):
                    while (await made.run(client.ready))[0] != 0:
                        assert process.poll() is None, (home / "daemon.log").read_text()
                        await trio.sleep(0.1)
                yield made
            finally:
                process.terminate()
                with trio.move_on_after(_READY_SECONDS, shield=True):
                    await process.wait()
                nursery.cancel_scope.cancel()


async def _daemon(
    words: list[str],
    environment: Mapping[str, str],
    log: IO[bytes],
    *,
    task_status: trio.TaskStatus[trio.Process] = trio.TASK_STATUS_IGNORED,
) -> None:
    process = await trio.lowlevel.open_process(words, stdin=DEVNULL, stdout=log, stderr=STDOUT, env=dict(environment))
    task_status.started(process)
    try:
        await process.wait()
    finally:
        if process.poll() is None:
            process.kill()
