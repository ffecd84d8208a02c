"""The demo's command line: start, show, stay up or exit, and stop everything whatever happens."""

import argparse
import os
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import trio

from scripts.services.processes import ServiceError

from .client import DemoFailure
from .machine import Machine, Places, check_ports, running
from .screen import Screen
from .signals import Interrupted, Signals
from .story import REPOSITORY, TAG, show

_DEFAULT_PORTS = {"us": 8101, "eu": 8102}
_LOOK_AGAIN = 0.5


def main() -> int:
    """Run the demo. Returns 0, or 1 when it failed, or 128 + a signal's number when one came before the end of the story."""
    options = _options()
    screen = Screen()
    signals = Signals()
    # It would change what the two nodes do.
    os.environ.pop("QUAY_OVERRIDE_CONFIG", None)
    ports = {"us": options.us_port, "eu": options.eu_port}
    try:
        check_ports(ports)
    except ServiceError as error:
        screen.bad(f"demo: {error}")
        return 1
    places = Places(Path(tempfile.mkdtemp(prefix="antipode-demo-")), ports)
    told = False
    try:
        screen.step("Start PostgreSQL, Redis and two nodes, us and eu, each with a store of its own")
        screen.note(
            "local folders may be stores here only because everything is one machine. In a real configuration other "
            "hosts could not reach them, so replication refuses them (but for ALLOW_LOCAL_REPLICATION)."
        )
        with running(places, signals, screen.say) as machine:
            began = time.monotonic()
            _tell(machine, screen, signals)
            told = True
            screen.good(f"The demo took {time.monotonic() - began:.0f} s and everything went as promised.")
            if not options.once:
                _stay_up(machine, screen)
    except Interrupted as signalled:
        if not told:
            screen.bad("interrupted; everything that was started is stopped")
            return 128 + signalled.number
    except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001 - whatever it is, the user is told and gets 1
        _report(screen, places, error)
        return 1
    screen.plain("\nEverything that was started is stopped, and its folder removed.")
    return 0


def _tell(machine: Machine, screen: Screen, signals: Signals) -> None:
    """Show the story. Raises Interrupted when a signal came."""
    try:
        # Held because an exception in the middle of Trio's own code would break it.
        with signals.held():
            number = trio.run(_show_until_signal, machine, screen, signals, strict_exception_groups=True)
    except (Exception, BaseExceptionGroup):
        if (ended := machine.ended()) is not None:
            screen.bad(f"demo: {ended}")
        raise
    if number is not None:
        raise Interrupted(number)


async def _show_until_signal(machine: Machine, screen: Screen, signals: Signals) -> int | None:
    """Show the story, and return the number of the signal that ended it, if one did."""
    came: int | None = None
    with trio.open_signal_receiver(*signals.numbers) as receiver:
        if signals.pending is not None:
            return signals.pending
        async with trio.open_nursery() as nursery:

            async def listen() -> None:
                nonlocal came
                came = await anext(receiver)
                nursery.cancel_scope.cancel()

            nursery.start_soon(listen)
            await show(machine, screen)
            nursery.cancel_scope.cancel()
    return came


def _stay_up(machine: Machine, screen: Screen) -> None:
    """Print what the user may try, and wait for a signal. Raises ServiceError when a process ends by itself."""
    us, eu = (f"127.0.0.1:{machine.places.ports[region]}" for region in ("us", "eu"))
    mine = "demo/mine:1"
    screen.step("Your turn: push in one region, pull in the other")
    screen.plain(
        f"""
   podman   podman pull --tls-verify=false {eu}/{REPOSITORY}:{TAG}
            podman tag {eu}/{REPOSITORY}:{TAG} {us}/{mine}
            podman push --tls-verify=false {us}/{mine}

   docker   docker pull {eu}/{REPOSITORY}:{TAG}
            docker tag {eu}/{REPOSITORY}:{TAG} {us}/{mine}
            docker push {us}/{mine}

   skopeo   skopeo copy --all --dest-tls-verify=false oci:{machine.places.folder / "image"} docker://{us}/{mine}
            skopeo copy --all --src-tls-verify=false docker://{eu}/{mine} oci:/tmp/antipode-mine

   The image holds data, not programs: it can be pulled and looked at, not run.
   Configuration: {machine.places.configuration}
   Logs:          {machine.places.logs}

   The registry stays up until Ctrl-C."""
    )
    while (ended := machine.ended()) is None:
        time.sleep(_LOOK_AGAIN)
    raise ServiceError(ended)


def _report(screen: Screen, places: Places, error: BaseException) -> None:
    """Say what failed and where the logs are; a bug leaves its traceback beside them."""
    leaves = list(_leaves(error))
    for leaf in leaves:
        known = isinstance(leaf, DemoFailure | ServiceError)
        screen.bad(f"demo failed: {leaf if known else f'{type(leaf).__name__}: {leaf}'}")
    if places.logs.exists():
        (places.logs / "demo.log").write_text("".join(traceback.format_exception(error)))
        screen.bad(f"Everything that was started is stopped; the logs are in {places.logs}")


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from _leaves(member)
    else:
        yield error


def _port(text: str) -> int:
    port = int(text) if text.isascii() and text.isdigit() and len(text) <= len("65535") else 0
    if not 1 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"found {text!r}; write a port, 1 to 65535")
    return port


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/demo",
        description="Two regions that are one registry, on this machine: push in one, pull in the other, lose a store.",
        epilog="The state lives in a folder under $TMPDIR and is removed at the end. Exit code: 0, or 1 when something was "
        "not as promised, or 128 + a signal's number when one came before the end.",
    )
    parser.add_argument("--once", action="store_true", help="exit at the end instead of staying up until Ctrl-C")
    for region in _DEFAULT_PORTS:
        parser.add_argument(
            f"--{region}-port",
            type=_port,
            metavar="PORT",
            default=os.environ.get(f"ANTIPODE_DEMO_{region.upper()}_PORT") or _DEFAULT_PORTS[region],
            help=f"where the {region} node listens on 127.0.0.1; default: $ANTIPODE_DEMO_{region.upper()}_PORT, "
            f"else {_DEFAULT_PORTS[region]}",
        )
    options = parser.parse_args()
    if options.us_port == options.eu_port:
        parser.error(f"both nodes cannot have port {options.us_port}")
    return options
