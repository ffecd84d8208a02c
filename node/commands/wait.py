"""`antipode wait`: block until an image has arrived in a location, for scripts and pipelines that deploy it there."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import click
import trio
from attrs import define, field
from rich.console import Console
from rich.status import Status

from node.commands.login import find_login, login_options
from node.commands.options import output_option
from node.commands.registry_client import Image, Refused, RegistryClient, Unreachable, open_registry
from node.commands.tables import show, size
from node.config.values import Unfit, parse_duration, say_duration

T = TypeVar("T")

EXIT_PRESENT = 0
EXIT_NOT_YET = 1
EXIT_NEVER = 2

_EXIT_CODES = """\b
Exit codes:
  0  present: every blob has a verified copy in every named location
  1  not yet: copies are on their way, or stalled and still retried
  2  anything else: no policy wants it there (not_required), it cannot come (impossible),
     the image or the location is unknown, the registry never answered, or the command line is wrong

\b
Example:
  antipode wait registry.example.com/team/app:v1 --location eu --timeout 10m && deploy-to-eu
"""

_BLOCK = 45.0
"""Seconds that one request blocks: balancers as a rule cut what is silent for a minute."""

_BLOCK_SHOWN = 5.0
"""The same where somebody watches the numbers."""

_PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0)
_SETTLED = frozenset({"present", "not_required", "impossible"})


@define
class _Following:
    """One location that is waited for. `answer` is the registry's latest, `trouble` why there is no newer one."""

    location: str
    answer: Mapping[str, Any] | None = None
    trouble: str = ""
    refused: bool = False
    failures: int = 0

    @property
    def status(self) -> str:
        return "unknown" if self.refused or self.answer is None else str(self.answer["status"])

    @property
    def hopeless(self) -> bool:
        """Whether waiting longer is in vain."""
        return self.refused or self.status in ("not_required", "impossible")


@define
class _Wait:
    """What was asked for on the command line."""

    image: Image
    deadline: float
    block: float
    referrers: bool
    request: bool
    status: Status | None = None
    following: list[_Following] = field(factory=list)

    async def run(self, client: RegistryClient) -> None:
        """Follow every location until all have arrived, one never will, or the time is up."""
        async with trio.open_nursery() as nursery:
            for one in self.following:
                nursery.start_soon(self._follow, client, one, nursery.cancel_scope)

    async def _follow(self, client: RegistryClient, one: _Following, others: trio.CancelScope) -> None:
        # The tag is resolved once: what is waited for is the image that it named when this began.
        reference = self.image.reference
        while True:
            began = trio.current_time()
            left = max(0.0, self.deadline - began)
            try:
                one.answer = await client.replication(
                    self.image,
                    reference,
                    one.location,
                    wait=min(left, self.block),
                    referrers=self.referrers,
                    request=self.request,
                )
            except Refused as refusal:
                one.refused, one.trouble = True, str(refusal)
            except Unreachable as error:
                one.trouble = str(error)
                one.failures += 1
                self._show()
                if not await self._pause(max(error.retry_after or 0.0, _PAUSES[min(one.failures, len(_PAUSES)) - 1])):
                    return
                continue
            else:
                one.trouble, one.failures = "", 0
                reference = str(one.answer["digest"])
            self._show()
            if one.hopeless:
                others.cancel()
            if one.hopeless or one.status in _SETTLED:
                return
            # A node that is about to stop answers early; the next request finds another one.
            early = trio.current_time() - began < min(left, self.block) / 2
            if not await self._pause(_PAUSES[1] if early else 0.0):
                return

    async def _pause(self, seconds: float) -> bool:
        """Wait before the next request; False when the time is up."""
        left = self.deadline - trio.current_time()
        await trio.sleep(max(0.0, min(seconds, left)))
        return trio.current_time() < self.deadline

    def _show(self) -> None:
        if self.status is not None:
            self.status.update("; ".join(_line(one) for one in self.following))


@click.command(
    "wait", epilog=_EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}
)
@click.argument("image", callback=lambda _context, _parameter, text: _read(Image.parse, text))
@click.option(
    "--location", "locations", multiple=True, required=True, help="Where it has to be; repeat it for several."
)
@click.option(
    "--timeout",
    default="10m",
    show_default=True,
    callback=lambda _context, _parameter, text: _read(parse_duration, text),
    help="How long to wait in all: 90s, 10m, 1h; 0s asks once.",
)
@click.option("--referrers", is_flag=True, help="With what is attached to it: signatures, bills of materials.")
@click.option(
    "--request", is_flag=True, help="Ask for copies that no policy wants, and for those that are coming to go first."
)
@click.option("--plain-http", is_flag=True, help="Speak HTTP; without it that is done only on this very machine.")
@login_options
@output_option
def command(
    image: Image,
    locations: Sequence[str],
    timeout: float,
    referrers: bool,
    request: bool,
    plain_http: bool,
    username: str | None,
    password_stdin: bool,
    output: str,
) -> None:
    """Wait until IMAGE, host[:port]/name[:tag] or host[:port]/name@digest, has arrived in every --location.

    Talks to the registry over HTTP and needs no configuration. A node that goes away meanwhile does no harm. The image is the one
    that the tag named in the beginning. Where the registry has accounts: --username, $ANTIPODE_TOKEN,
    `antipode login`, or docker's or podman's login.
    """
    following = [_Following(location) for location in dict.fromkeys(locations)]
    try:
        login = find_login(image.host, image.name, username, password_stdin=password_stdin)
    except Unfit as error:
        raise click.UsageError(str(error)) from None
    with _shown() as status:

        async def main() -> None:
            block = _BLOCK_SHOWN if status is not None else _BLOCK
            wait = _Wait(image, trio.current_time() + timeout, block, referrers, request, status, following)
            async with open_registry(image, login, plain_http=plain_http) as client:
                await wait.run(client)

        trio.run(main, strict_exception_groups=True)
    _report(image, following, output)
    sys.exit(_exit_code(following))


def _exit_code(following: Sequence[_Following]) -> int:
    if all(one.status == "present" for one in following):
        return EXIT_PRESENT
    never_heard = all(one.answer is None for one in following)
    return EXIT_NEVER if never_heard or any(one.hopeless for one in following) else EXIT_NOT_YET


def _report(image: Image, following: Sequence[_Following], output: str) -> None:
    digest = next((one.answer["digest"] for one in following if one.answer is not None), None)
    document = {
        "image": f"{image.host}/{image.name}",
        "reference": image.reference,
        "digest": digest,
        "present": all(one.status == "present" for one in following),
        "locations": [
            {"location": one.location, "status": "unknown", "reason": one.trouble}
            if one.answer is None or one.refused
            else {**one.answer, "trouble": one.trouble or None}
            for one in following
        ],
    }
    rows = [_row(one) for one in following]
    reference = digest or image.reference
    # Only a digest has a colon.
    said = f"@{reference}" if ":" in reference else f":{reference}"
    show(document, output, (f"{image.host}/{image.name}{said}", rows))


def _row(one: _Following) -> dict[str, object]:
    answer: Mapping[str, Any] = one.answer or {}
    missing = answer.get("missing_blobs")
    estimate = answer.get("estimate_seconds")
    return {
        "location": one.location,
        "status": one.status,
        "missing": None
        if missing is None
        else f"{missing} of {answer['blobs']} blobs, {size(answer['missing_bytes'])}",
        "ahead": answer.get("queue_position"),
        "estimate": None if estimate is None else say_duration(max(1, round(estimate))),
        "reason": one.trouble or answer.get("last_error") or answer.get("reason"),
    }


def _line(one: _Following) -> str:
    row = _row(one)
    facts = [str(row[name]) for name in ("missing", "reason") if row[name] and one.status != "present"]
    if row["estimate"]:
        facts.append(f"about {row['estimate']}")
    return f"{one.location}: {one.status}" + (f" ({', '.join(facts)})" if facts else "")


@contextmanager
def _shown() -> Iterator[Status | None]:
    """Show what is going on where somebody looks: on standard error, if that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    with Console(stderr=True).status("asking") as status:
        yield status


def _read(parse: Callable[[str], T], text: str) -> T:
    try:
        return parse(text)
    except Unfit as error:
        raise click.BadParameter(f"found {text!r}; {error}") from None
