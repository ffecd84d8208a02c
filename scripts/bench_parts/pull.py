"""Question `pull`: whole images as clients pull them, and the single requests that a pull is made of."""

from collections.abc import Callable, Generator, Iterable, Sequence
from functools import partial
from itertools import product
from random import Random

from .clients import Samples, Target, for_ever, once, one, pull, push, request
from .delay import delayed
from .images import MANIFEST, Image, make_image, popularity
from .measure import Run, in_turns, measure, middle, pooled
from .peers import say
from .report import Chart, Outcome, number, times
from .servers import ANTIPODE, SERIES, Ground, Server, behind, open_ground, open_servers
from .sizes import Sizes
from .wire import Ask, Client, Got, Hang, drive

FAR = 0.005
"""Seconds of round trip between registry and store where latency is the question."""
_SINGLE_CLIENTS = 16

Key = tuple[str, ...]


def compare_pulls(sizes: Sizes, *, peers: bool) -> list[Outcome]:
    """Measure pulls of Antipode and its peers in turns."""
    with open_ground(peers=peers) as ground:
        images = [make_image(number, "pull", sizes.layer) for number in range(sizes.images)]
        with open_servers(ground) as servers:
            fill(servers, images)
            outcomes = [_whole(ground, servers, images, sizes), _single(ground, servers, images, sizes)]
        with delayed(ground.store.port, FAR) as proxy, open_servers(behind(ground, proxy.port)) as servers:
            outcomes.append(_far(ground, servers, images, sizes))
    return outcomes


def fill(servers: Sequence[Server], images: Sequence[Image]) -> None:
    """Push the images to every server."""
    for server in servers:
        say(f"filling {server.name}")
        works = [partial(push, server.target, image) for image in images]
        drive([once(Samples(), *works[at::4]) for at in range(4)])


def many(target: Target, images: Sequence[Image], count: int, *, follow: bool) -> Callable[[Samples], Iterable[Client]]:
    """Return `count` clients that pull popular images more often."""
    weights = popularity(len(images))

    def clients(samples: Samples) -> Iterable[Client]:
        for at in range(count):
            random = Random(at)  # noqa: S311 - which image comes next, the same for every server

            def work(random: Random = random) -> Generator[Ask | Hang, Got, int]:
                (image,) = random.choices(images, cum_weights=weights)
                return pull(target, image, samples, follow=follow)

            yield for_ever(samples, work)

    return clients


def _whole(ground: Ground, servers: Sequence[Server], images: Sequence[Image], sizes: Sizes) -> Outcome:
    runs: dict[Key, list[Run]] = {}
    store = ground.store_pids
    for number_, count, follow in product(range(sizes.rounds), sizes.clients, (False, True)):
        for server in in_turns(servers, number_):
            run = measure(server, store, many(server.target, images, count, follow=follow), sizes.seconds)
            runs.setdefault((server.name, str(count), "followed" if follow else "not followed"), []).append(run)
            say(f"round {number_ + 1}: {server.name}, {count} clients, follow {follow}: {run.rate:.1f} images/s")
    rows, groups = [], dict[str, dict[str, float]]()
    for (name, crowd, how), found in runs.items():
        ours = runs[ANTIPODE, crowd, how]
        groups.setdefault(f"{crowd} clients, {how}", {})[name] = middle(found, lambda run: run.rate)
        rows.append(
            (
                how, crowd, name,
                number(middle(found, lambda run: run.rate)),
                times(middle(ours, lambda run: run.rate), middle(found, lambda run: run.rate)),
                number(1000 * pooled(found, 0.5)), number(1000 * pooled(found, 0.99)),
                number(1000 * middle(found, lambda run: run.cpu_each)),
                number(1000 * middle(found, lambda run: run.store_each)),
                f"{100 * middle(found, lambda run: run.own_share):.0f} %",
                f"{max(run.peak for run in found) >> 20}",
            )
        )  # fmt: skip
    header = (
        "redirects", "clients", "server", "images/s", "Antipode is", "p50 ms", "p99 ms", "server CPU ms/image",
        "store CPU ms/image", "generator, of a core", "peak MiB",
    )  # fmt: skip
    layers = sum(len(image.layers) for image in images) / len(images)
    size = sum(image.size for image in images) / len(images) / 1e6
    how_many = f"{len(images)} images of {layers:.1f} layers and {size:.1f} MB on average, chosen by Zipf (0.8)"
    notes = [
        f"{how_many}; every pull over new connections: HEAD tag, GET manifest by digest, configuration, layers.",
        "Redirects not followed: the registry's own work; followed: the store's share comes on top, the same for all.",
    ]
    return Outcome(
        "pull",
        "Whole-image pulls",
        header,
        sorted(rows, key=_order),
        Chart("Whole-image pulls", "images/s", groups),
        notes,
    )


def _order(row: Sequence[str]) -> tuple[str, int, int]:
    return row[0], int(row[1]), SERIES.index(row[2])


def _single(ground: Ground, servers: Sequence[Server], images: Sequence[Image], sizes: Sizes) -> Outcome:
    image = images[0]
    large = max(image.layers, key=lambda layer: len(layer.data))
    accept = f"Accept: {MANIFEST}\r\n"
    name = f"/v2/{image.repository}"
    questions = {
        "manifest by tag": (f"{name}/manifests/{image.tag}", accept, (200,)),
        "manifest by digest": (f"{name}/manifests/{image.manifest.digest}", accept, (200,)),
        "blob, redirect": (f"{name}/blobs/{large.digest}", "", (200, 307)),
    }
    runs: dict[Key, list[Run]] = {}
    store = ground.store_pids
    for number_, (label, (path, more, statuses)) in product(range(sizes.rounds), questions.items()):
        for server in in_turns(servers, number_):

            def clients(
                samples: Samples,
                server: Server = server,
                path: str = path,
                more: str = more,
                statuses: tuple[int, ...] = statuses,
            ) -> Iterable[Client]:
                ask = request(server.target, "GET", path, more=more)
                return [for_ever(samples, lambda: one(ask, *statuses)) for _ in range(_SINGLE_CLIENTS)]

            run = measure(server, store, clients, sizes.seconds)
            runs.setdefault((label, server.name), []).append(run)
            say(f"round {number_ + 1}: {label}: {server.name}: {run.rate:.0f}/s")
    rows, groups = [], dict[str, dict[str, float]]()
    for (label, server_name), found in runs.items():
        rate = middle(found, lambda run: run.rate)
        groups.setdefault(label, {})[server_name] = rate
        rows.append(
            (
                label, server_name, number(rate), times(middle(runs[label, ANTIPODE], lambda run: run.rate), rate),
                number(1000 * pooled(found, 0.5)), number(1000 * pooled(found, 0.99)),
                number(1e6 * middle(found, lambda run: run.cpu_each)),
                number(1e6 * middle(found, lambda run: run.store_each)),
                f"{100 * middle(found, lambda run: run.own_share):.0f} %",
            )
        )  # fmt: skip
    header = (
        "request", "server", "requests/s", "Antipode is", "p50 ms", "p99 ms", "server CPU us/request", "store CPU us/request",
        "generator, of a core",
    )  # fmt: skip
    chart = Chart("Single requests", "requests/s", groups, logarithmic=True)
    notes = [
        f"{_SINGLE_CLIENTS} connections that stay open; a server that cannot redirect sends the blob's bytes instead."
    ]
    return Outcome("requests", "Single requests", header, rows, chart, notes)


def _far(ground: Ground, servers: Sequence[Server], images: Sequence[Image], sizes: Sizes) -> Outcome:
    """Latency of one pull and one push at a time, with a network between registry and store.

    The servers have just been started: an image's first pull finds nothing in their memories, the others everything.
    """
    runs: dict[Key, list[Run]] = {}
    pushed = [
        make_image(number_, f"far-{at}", sizes.layer)
        for at in range(sizes.rounds)
        for number_ in range(max(1, sizes.far_pulls // 4))
    ]
    store, each = ground.store_pids, max(1, sizes.far_pulls // 4)
    for round_ in range(sizes.rounds + 1):
        # The first round is a pull of every image that nobody has pulled.
        some = [images[at % len(images)] for at in range(sizes.far_pulls)] if round_ else images
        for server in in_turns(servers, round_):
            target = server.target
            new = pushed[(round_ - 1) * each :][:each]

            def pulls(samples: Samples, target: Target = target, some: Sequence[Image] = some) -> Iterable[Client]:
                return [once(samples, *(partial(pull, target, image, samples, follow=False) for image in some))]

            def pushes(samples: Samples, target: Target = target, new: Sequence[Image] = new) -> Iterable[Client]:
                return [once(samples, *(partial(push, target, image) for image in new))]

            for label, clients in (("pull again", pulls), ("push", pushes)) if round_ else (("first pull", pulls),):
                run = measure(server, store, clients, None)
                runs.setdefault((label, server.name), []).append(run)
                say(
                    f"round {round_}: {label} with {FAR * 1000:g} ms to the store: {server.name}: {pooled([run], 0.5):.3f} s"
                )
    rows = [
        (
            label, name, number(1000 * pooled(found, 0.5)), number(1000 * pooled(found, 0.99)),
            times(pooled(found, 0.5), pooled(runs[label, ANTIPODE], 0.5)),
        )
        for (label, name), found in runs.items()
    ]  # fmt: skip
    groups = dict[str, dict[str, float]]()
    for (label, name), found in runs.items():
        groups.setdefault(label, {})[name] = 1000 * pooled(found, 0.5)
    header = ("whole image", "server", "p50 ms", "p99 ms", "takes")
    chart = Chart(
        f"One image at a time, {FAR * 1000:g} ms between registry and store",
        "ms, less is better",
        groups,
        logarithmic=True,
    )
    return Outcome(
        "far", f"One image at a time with {FAR * 1000:g} ms between registry and store", header, sorted(rows), chart,
        [
            "Redirects not followed. `takes`: times as long as Antipode.",
            "A first pull finds the server just started; pulled again, everything is in its memory that it keeps there.",
        ],
    )  # fmt: skip
