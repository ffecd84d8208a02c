"""Where a message really goes: a name that answers differently from one moment to the next leads nowhere else."""

import socket
from collections.abc import Sequence
from typing import Any

import pytest
import trio
from attrs import define, field

from node.hooks.addresses import networks
from node.hooks.message import Event, make_message
from node.hooks.sender import Outcome, send
from tests.webhooks.conftest import HERE, Receiver, receiver

__all__ = ["receiver"]

MESSAGE = make_message(
    Event("7e9f", "pushed", "team/app:v1", 0.0, {}), source="https://registry.test", secret=b"s" * 32, now=0.0
)
INSIDE = "169.254.169.254"
"""Where clouds keep a machine's credentials."""


@define(eq=False)
class Resolver(trio.abc.HostnameResolver):
    """Somebody else's name server: each question has the next of these answers, the last one for ever."""

    answers: Sequence[Sequence[str]]
    asked: int = field(default=0, init=False)

    async def getaddrinfo(
        self,
        host: Any,  # noqa: ARG002 - trio's names
        port: Any,
        family: int = 0,  # noqa: ARG002
        type: int = 0,  # noqa: A002, ARG002
        proto: int = 0,  # noqa: ARG002
        flags: int = 0,  # noqa: ARG002
    ) -> Any:
        """Answer."""
        addresses = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:  # noqa: ARG002 - trio's
        """Know nobody."""
        raise OSError


async def tell(receiver: Receiver, *answers: Sequence[str]) -> tuple[Outcome, int]:
    """Send to a name that is answered for in this way; return what became of it, and how often the name was looked up."""
    resolver = Resolver(answers)
    trio.socket.set_custom_hostname_resolver(resolver)
    url = receiver.url.replace("127.0.0.1", "rebinds.test")
    outcome = await send(url, MESSAGE, allowed=networks(HERE), deadline=10, agent="test", authorities=None)
    return outcome, resolver.asked


async def test_a_name_that_changes_its_mind(receiver: Receiver) -> None:
    """The connection goes to the address that was looked at: the name is looked up once, and what it says later changes nothing."""
    assert await tell(receiver, ["127.0.0.1"], [INSIDE]) == (Outcome(True), 1)
    assert len(receiver.got) == 1
    assert receiver.got[0].headers["host"].startswith("rebinds.test")


@pytest.mark.parametrize("answer", [[INSIDE], ["127.0.0.1", INSIDE], [INSIDE, "127.0.0.1"], ["10.1.2.3"]])
async def test_a_name_that_leads_inside_too(receiver: Receiver, answer: Sequence[str]) -> None:
    """One address that is not allowed is enough to send nothing, wherever it stands."""
    outcome, _ = await tell(receiver, answer)
    assert not outcome.taken
    assert "is not a public address" in outcome.reason
    assert receiver.got == []


async def test_a_redirect_is_no_detour(receiver: Receiver) -> None:
    """A receiver that sends elsewhere has not taken the message, and nobody looks where it points to."""
    receiver.mode = "redirect"
    assert await tell(receiver, ["127.0.0.1"]) == (Outcome(False, "it answered 307"), 1)
    assert len(receiver.got) == 1
