"""What the demo shows, in its order: push in one region, pull in the other, watch the copies, lose a store."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import trio

from .client import LOCATION_HEADER, Client, DemoFailure, Pulled, http_client
from .image import Image, build_image, content_size
from .machine import COPY_MIB_PER_SECOND, Machine
from .screen import Screen, Work, mib

REPOSITORY = "demo/antipode"
TAG = "1"
_COPY_SECONDS = 30.0
_HEALTH_SECONDS = 20.0
_LOOK_AGAIN = 0.1


async def show(machine: Machine, screen: Screen) -> None:
    """Show everything once.

    Raises:
        DemoFailure: something was not as promised.

    """
    async with http_client() as http:
        us, eu = (Client(machine.places.url(region), REPOSITORY, http) for region in ("us", "eu"))
        image = await _build(machine, screen)
        began = await _push(screen, us, image)
        await _pull_at_once(screen, eu, image)
        await _watch_copies(screen, eu, image, began)
        await _pull_from_own_store(screen, eu, image)
        await _lose_store(machine, screen, us, eu, image)
        await _store_returns(machine, screen, us, image)


async def _build(machine: Machine, screen: Screen) -> Image:
    screen.step("Build an image: amd64 and arm64, four layers each, the first shared")

    def build(work: Work) -> Image:
        def progress(nbytes: int) -> None:
            trio.from_thread.check_cancelled()
            work.advance(nbytes)

        return build_image(machine.places.folder / "image", progress)

    with screen.work("packing layers", content_size()) as work:
        image = await trio.to_thread.run_sync(partial(build, work))
    screen.say(f"{len(image.blobs)} blobs, {mib(image.size)}, index {image.index.digest[:19]}")
    return image


async def _push(screen: Screen, us: Client, image: Image) -> float:
    """Push and return when the push ended, on Trio's clock."""
    screen.step(f"Push it into us: {us.url}/v2/{REPOSITORY}")
    began = trio.current_time()
    with screen.transfers(image.blobs) as bars:
        await us.push(image, TAG, bars.moved, bars.done)
    ended = trio.current_time()
    screen.good(f"pushed {mib(image.size)} in {ended - began:.1f} s; tag {TAG} is set")
    return ended


async def _pull_at_once(screen: Screen, eu: Client, image: Image) -> None:
    screen.step(f"Pull it at once from eu: {eu.url}/v2/{REPOSITORY}")
    screen.say(
        f"Copies to eu have only begun (slowed to {COPY_MIB_PER_SECOND} MiB/s here, so that you can watch); what eu "
        "lacks, it serves from the us store."
    )
    pulled = await _pull(screen, eu, image)
    count = Counter(pulled.stores.values())
    if count["us"]:
        screen.good(f"{count['us']} of {len(image.blobs)} blobs were served from the source store, us")
    else:
        screen.note("every blob had been copied already, so none came from us: this machine was faster than the demo")


async def _watch_copies(screen: Screen, eu: Client, image: Image, pushed_at: float) -> None:
    screen.step("Watch the replicas arrive in the eu store")
    screen.say("Copies bring them, or eu kept them while it passed them on just now.")
    screen.say(f"eu is asked for the first byte of every blob; its header {LOCATION_HEADER} names the store.")
    missing = {blob.digest: blob for blob in image.blobs}
    with (
        screen.arrivals(image.blobs, "served by eu from") as table,
        _deadline(_COPY_SECONDS, "copies to the eu store"),
    ):
        first_look = True
        while missing:
            for blob in list(missing.values()):
                if await eu.store_of(blob) == "eu":
                    del missing[blob.digest]
                    # Nobody watched before the first look.
                    after = f"{trio.current_time() - pushed_at:.1f} s after the push"
                    table.done(blob, f"its own store, {'when we first looked' if first_look else after}")
            first_look = False
            await trio.sleep(_LOOK_AGAIN)
    screen.good(f"all {len(image.blobs)} replicas have arrived")


async def _pull_from_own_store(screen: Screen, eu: Client, image: Image) -> None:
    screen.step("Pull again from eu, now from its own store")
    pulled = await _pull(screen, eu, image)
    _expect_store(pulled, "eu")


async def _lose_store(machine: Machine, screen: Screen, us: Client, eu: Client, image: Image) -> None:
    screen.step("Take the us store away, and pull from both regions")
    machine.take_away("us")
    lost_at = trio.current_time()
    screen.say(f"{machine.places.store('us')} is gone")
    screen.say(
        "From us at once: a node that has not noticed yet names us, the store that it asks first; the bytes can only "
        "come from eu."
    )
    await _pull(screen, us, image)
    screen.say("From eu:")
    _expect_store(await _pull(screen, eu, image), "eu")
    await _wait_for_health(us, 503)
    status, services = await us.health()
    said = ", ".join(f"{name}: {str(ok).lower()}" for name, ok in services.items())
    screen.good(
        f"GET {us.url}/health/endtoend says {status} ({said}) {trio.current_time() - lost_at:.1f} s after the loss: a "
        "load balancer sends clients to eu"
    )
    screen.say("From us again, now that it knows: requests that still arrive are served from eu.")
    _expect_store(await _pull(screen, us, image), "eu")


async def _store_returns(machine: Machine, screen: Screen, us: Client, image: Image) -> None:
    screen.step("Put the us store back")
    machine.put_back("us")
    began = trio.current_time()
    await _wait_for_health(us, 200)
    screen.good(
        f"/health/endtoend of us says 200 again after {trio.current_time() - began:.1f} s (a quiet spell first)"
    )
    _expect_store(await _pull(screen, us, image), "us")


async def _pull(screen: Screen, client: Client, image: Image) -> Pulled:
    began = trio.current_time()
    with screen.transfers(image.blobs) as bars:
        pulled = await client.pull(image, TAG, bars.moved, lambda blob, store: bars.done(blob, f"from {store}"))
    seconds = trio.current_time() - began
    screen.good(f"{mib(pulled.nbytes)} in {seconds:.1f} s, every byte compared: the same")
    return pulled


def _expect_store(pulled: Pulled, store: str) -> None:
    others = {digest: found for digest, found in pulled.stores.items() if found != store}
    if others:
        raise DemoFailure(f"these blobs should have come from {store}: {others}")


async def _wait_for_health(client: Client, status: int) -> None:
    with _deadline(_HEALTH_SECONDS, f"/health/endtoend of {client.url} to say {status}"):
        while (await client.health())[0] != status:  # noqa: ASYNC110 - the other process has no event for us
            await trio.sleep(_LOOK_AGAIN)


@contextmanager
def _deadline(seconds: float, what: str) -> Iterator[None]:
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError:
        raise DemoFailure(f"waited {seconds:.0f} s in vain for {what}") from None
