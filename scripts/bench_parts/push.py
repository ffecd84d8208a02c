"""Question `push`: whole images pushed as docker does, and what each costs the store."""

from collections.abc import Iterable
from functools import partial
from itertools import product

from .clients import Samples, Target, once, push
from .delay import Traffic, delayed
from .images import Image, make_image
from .measure import Run, in_turns, measure, middle, pooled
from .peers import say
from .report import Chart, Outcome, number, times
from .servers import ANTIPODE, SERIES, Ground, Server, behind, open_ground, open_servers
from .sizes import Sizes
from .wire import Client, drive


def compare_pushes(sizes: Sizes, *, peers: bool) -> list[Outcome]:
    """Measure pushes to Antipode and its peers in turns."""
    with open_ground(peers=peers) as ground:
        with open_servers(ground) as servers:
            rates = _rates(ground, servers, sizes)
        with delayed(ground.store.port, 0.0) as proxy, open_servers(behind(ground, proxy.port)) as servers:
            costs = [_cost(server, proxy.traffic, make_image(0, "push-cost", sizes.push_layer)) for server in servers]
    chart = Chart(
        "Calls on the store per layer pushed",
        "calls, less is better",
        {"calls": {row[0]: float(row[1]) for row in costs}},
    )
    header = (
        "server",
        "store calls per layer",
        "of these copies inside the store",
        "bytes sent to the store per byte pushed",
    )
    return [
        rates,
        Outcome(
            "push-cost",
            "What a push costs the store",
            header,
            costs,
            chart,
            ["A manifest's calls are counted with the layers."],
        ),
    ]


def _rates(ground: Ground, servers: list[Server], sizes: Sizes) -> Outcome:
    runs: dict[tuple[int, str], list[Run]] = {}
    store = ground.store_pids
    for round_, count in product(range(sizes.rounds), sizes.pushers):
        series = f"push-{count}-{round_}"
        images = [make_image(at, series, sizes.push_layer) for at in range(count * sizes.pushes)]
        for server in in_turns(servers, round_):

            def clients(
                samples: Samples, target: Target = server.target, images: list[Image] = images, count: int = count
            ) -> Iterable[Client]:
                works = [partial(push, target, image) for image in images]
                return [once(samples, *works[at::count]) for at in range(count)]

            run = measure(server, store, clients, None)
            runs.setdefault((count, server.name), []).append(run)
            say(f"round {round_ + 1}: {count} clients push: {server.name}: {run.rate:.2f} images/s")
    rows, groups = [], dict[str, dict[str, float]]()
    for (count, name), found in sorted(runs.items(), key=lambda item: (item[0][0], SERIES.index(item[0][1]))):
        rate, ours = middle(found, lambda run: run.rate), middle(runs[count, ANTIPODE], lambda run: run.rate)
        groups.setdefault(f"{count} clients", {})[name] = rate
        rows.append(
            (
                str(count),
                name,
                number(rate),
                times(ours, rate),
                number(1000 * pooled(found, 0.5)),
                number(1000 * pooled(found, 0.99)),
                number(1000 * middle(found, lambda run: run.cpu_each)),
                number(1000 * middle(found, lambda run: run.store_each)),
                f"{100 * middle(found, lambda run: run.own_share):.0f} %",
                f"{max(run.peak for run in found) >> 20}",
            )
        )
    header = (
        "clients", "server", "images/s", "Antipode is", "p50 ms", "p99 ms", "server CPU ms/image", "store CPU ms/image",
        "generator, of a core", "peak MiB",
    )  # fmt: skip
    what = f"Every image is new: 8 to 12 layers of at most {sizes.push_layer >> 10} KiB"
    notes = [f"{what}; HEAD, POST, PATCH and PUT per blob, then the manifest."]
    return Outcome("push", "Whole-image pushes", header, rows, Chart("Whole-image pushes", "images/s", groups), notes)


def _cost(server: Server, traffic: Traffic, image: Image) -> tuple[str, str, str, str]:
    """Push one image and return what went to the store. Probes of the store go on meanwhile, about one call a second."""
    calls, copies, sent = traffic.calls, traffic.copies, traffic.sent
    drive([once(Samples(), partial(push, server.target, image))])
    layers = len(image.blobs)
    return (
        server.name,
        number((traffic.calls - calls) / layers),
        number((traffic.copies - copies) / layers),
        f"{(traffic.sent - sent) / image.size:.2f}",
    )
