"""Question `blob`: one large blob, streamed through the server and by redirect."""

from collections.abc import Generator, Iterable, Sequence
from itertools import product
from random import Random

from .clients import Samples, Target, check, elsewhere, once, push_blob, request
from .images import Blob, blob_of
from .measure import Run, in_turns, measure, middle
from .peers import say
from .report import Chart, Outcome, number, times
from .servers import ANTIPODE, Server, open_ground, open_servers
from .sizes import MIB, Sizes
from .wire import Ask, Client, Got, Hang, drive

_REPOSITORY = "bench/large"
_PULLS = 8
"""Of all clients together: one of 100 MB takes but a tenth of a second."""
_ROUNDS = 2
"""What passes by a server in a second differs more than what it does: so many times as many rounds as elsewhere."""


def compare_blobs(sizes: Sizes, *, peers: bool) -> list[Outcome]:
    """Measure one blob from Antipode and its peers in turns."""
    runs: dict[tuple[str, str, int], list[Run]] = {}
    blob = blob_of(Random("large").randbytes(sizes.blob))  # noqa: S311 - filler
    with open_ground(peers=peers) as ground:
        for redirect in (False, True):
            how = "by redirect" if redirect else "through the server"
            with open_servers(ground, redirect=redirect) as servers:
                if not redirect:
                    _fill(servers, blob)
                for round_, count in product(range(_ROUNDS * sizes.rounds), (1, 4)):
                    for server in in_turns(servers, round_):

                        def clients(
                            samples: Samples, target: Target = server.target, count: int = count
                        ) -> Iterable[Client]:
                            pulls = [lambda: _get(target, blob)] * (_PULLS // count)
                            return [once(samples, *pulls) for _ in range(count)]

                        run = measure(server, ground.store_pids, clients, None)
                        runs.setdefault((how, server.name, count), []).append(run)
                        say(f"round {round_ + 1}: {how}, {count} at once: {server.name}: {_speed(run):.0f} MB/s")
    rows, groups = [], dict[str, dict[str, float]]()
    gigabyte = 1e9 / sizes.blob
    for (how, name, count), found in runs.items():
        speed = middle(found, _speed)
        groups.setdefault(f"{how}, {count} at once", {})[name] = speed
        rows.append(
            (
                how,
                str(count),
                name,
                number(speed),
                times(middle(runs[how, ANTIPODE, count], _speed), speed),
                number(gigabyte * middle(found, lambda run: run.cpu_each)),
                number(gigabyte * middle(found, lambda run: run.store_each)),
                f"{100 * middle(found, lambda run: run.own_share):.0f} %",
                f"{max(run.peak for run in found) >> 20}",
            )
        )
    header = (
        "how", "clients", "server", "MB/s", "Antipode is", "server CPU s/GB", "store CPU s/GB", "generator, of a core", "peak MiB",
    )  # fmt: skip
    notes = [
        f"One blob of {sizes.blob // MIB} MiB, {_PULLS} times in every round.",
        "Antipode verifies every MiB before it sends it on; the peers send what comes.",
    ]
    return [Outcome("blob", "One large blob", header, rows, Chart("One large blob", "MB/s", groups), notes)]


def _speed(run: Run) -> float:
    return run.received / run.seconds / 1e6


def _fill(servers: Sequence[Server], blob: Blob) -> None:
    for server in servers:
        say(f"filling {server.name}")
        drive([once(Samples(), lambda target=server.target: push_blob(target, _REPOSITORY, blob))])  # type: ignore[misc] # bound early


def _get(target: Target, blob: Blob) -> Generator[Ask | Hang, Got, int]:
    got = check((yield request(target, "GET", f"/v2/{_REPOSITORY}/blobs/{blob.digest}")), 200, 307)
    if got.status == 307:
        got = check((yield elsewhere(got.header("location"))), 200)
    assert got.size == len(blob.data)
    yield Hang()
    return got.size
