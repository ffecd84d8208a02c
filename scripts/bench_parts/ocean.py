"""Question `ocean`: the same requests to a node whose database and Redis are 100 ms away."""

from collections.abc import Callable, Generator
from contextlib import ExitStack
from functools import partial
from statistics import median
from urllib.parse import urlsplit, urlunsplit

from attrs import evolve

from .clients import Samples, Target, once, one, pull, push, push_blob, request
from .delay import Traffic, delayed
from .images import MANIFEST, Image, make_image
from .peers import say
from .report import Chart, Outcome, number
from .servers import Ground, Server, open_ground, open_servers
from .sizes import Sizes
from .wire import Ask, Got, Hang, drive

ROUND_TRIP = 0.1
_WARM_UP = 3
"""Images pushed and pulled before anything is measured."""

Work = Callable[[], Generator[Ask | Hang, Got, int | None]]


def compare_oceans(sizes: Sizes, *, peers: bool) -> list[Outcome]:  # noqa: ARG001 - no peer has a database
    """Measure one request at a time, near and far, cold and warm."""
    looks = max(1, sizes.looks // 10)
    images = [make_image(at, "ocean", sizes.push_layer) for at in range(looks)]
    with open_ground(peers=False) as ground, open_servers(ground) as (near,):
        for image in images:
            drive([once(Samples(), partial(push, near.target, image))])
        near_by = _all(near, images, "near")
        with ExitStack() as stack:
            away, traffic = _across(ground, stack)
            far = stack.enter_context(open_servers(away))[0]
            across = _all(far, images, "far", traffic)
    rows, groups = [], dict[str, dict[str, float]]()
    for label, (seconds, counted) in across.items():
        short = near_by[label][0]
        waited = max(0.0, seconds - short) / ROUND_TRIP
        rows.append((label, number(1000 * short), number(1000 * seconds), f"{waited:.1f}", f"{counted:g}"))
        groups[label] = {"database near": 1000 * short, f"{1000 * ROUND_TRIP:g} ms away": 1000 * seconds}
    header = (
        "request", "near, p50 ms", f"{1000 * ROUND_TRIP:g} ms away, p50 ms", "round trips waited for", "counted",
    )  # fmt: skip
    notes = [
        "Round trips waited for: how much longer it takes, over 100 ms.",
        "Counted: those on the way to the database meanwhile (median), also the node's own: heartbeats, its log of pulls.",
        "Cold: the node has not seen the image; warm: it has, within METADATA_STALENESS.",
    ]
    chart = Chart("One request at a time, database and Redis near and far", "ms, less is better", groups)
    return [Outcome("ocean", "Across an ocean", header, rows, chart, notes)]


def _across(ground: Ground, stack: ExitStack) -> tuple[Ground, Traffic]:
    """Return the ground with its database and Redis an ocean away, and what goes to the database."""

    def away(uri: str) -> tuple[str, Traffic]:
        parts = urlsplit(uri)
        proxy = stack.enter_context(delayed(parts.port or 0, ROUND_TRIP))
        account = f"{parts.username}@" if parts.username else ""
        return urlunsplit(parts._replace(netloc=f"{account}127.0.0.1:{proxy.port}")), proxy.traffic

    database, traffic = away(ground.database)
    return evolve(ground, database=database, redis=away(ground.redis)[0] if ground.redis else None), traffic


def _all(
    server: Server, images: list[Image], where: str, traffic: Traffic | None = None
) -> dict[str, tuple[float, float]]:
    """Return seconds and round trips by request.

    The first half of the images is asked for request by request, the others as whole pulls.
    """
    target, found, counted = server.target, dict[str, list[float]](), dict[str, list[int]]()

    def timed(label: str, work: Work) -> None:
        samples, before = Samples(), traffic.trips if traffic else 0
        drive([once(samples, work)])
        found.setdefault(label, []).extend(samples.seconds)
        counted.setdefault(label, []).append((traffic.trips if traffic else 0) - before)

    # Connections to the database prepare each statement once, which takes round trips that no later request waits for.
    for at in range(_WARM_UP):
        new = make_image(at, f"ocean-{where}-first", 20_000)
        for work in (partial(push, target, new), partial(pull, target, new, Samples(), follow=False)):
            drive([once(Samples(), work)])
    accept = f"Accept: {MANIFEST}\r\n"
    half = max(1, len(images) // 2)
    for image in images[:half]:
        name = f"/v2/{image.repository}"
        layer = max(image.layers, key=lambda layer: len(layer.data))
        tag = partial(_get, target, f"{name}/manifests/{image.tag}", accept)
        digest = partial(_get, target, f"{name}/manifests/{image.manifest.digest}", accept)
        blob = partial(_get, target, f"{name}/blobs/{layer.digest}", "")
        for label, work in (
            ("manifest by tag, cold", tag), ("manifest by tag, warm", tag), ("manifest by digest, warm", digest),
            ("blob, cold", blob), ("blob, warm", blob),
        ):  # fmt: skip
            timed(label, work)
    for image in images[half:] or images:
        for label in ("whole pull, cold", "whole pull, warm"):
            timed(label, partial(pull, target, image, Samples(), follow=False))
    for at in range(half):
        new = make_image(at, f"ocean-{where}", 100_000)
        timed("one layer: HEAD, POST, PATCH, PUT", partial(push_blob, target, new.repository, new.layers[0]))
        timed("whole push", partial(push, target, evolve(new, layers=new.layers[1:])))
    for label, seconds in found.items():
        say(f"{where}: {label}: {median(seconds):.3f} s")
    return {label: (median(seconds), median(counted[label])) for label, seconds in found.items()}


def _get(target: Target, path: str, more: str) -> Generator[Ask | Hang, Got, int]:
    return one(request(target, "GET", path, more=more), 200, 307)
