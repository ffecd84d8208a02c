"""Where a message really goes: a name that answers differently from one moment to the next leads nowhere else."""

import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
import trio
from attrs import define, field

from node.hooks.addresses import networks
from node.hooks.message import Event, make_message
from node.hooks.sender import Outcome, send
from replication.offload import in_thread
from tests.webhooks.conftest import HERE, Receiver, receiver

__all__ = ["receiver"]

MESSAGE = make_message(
    Event("7e9f", "pushed", "team/app:v1", 0.0, {}), source="https://registry.test", secret=b"s" * 32, now=0.0
)
Tell = Callable[..., Awaitable[tuple[Outcome, int]]]
INSIDE = "169.254.169.254"
"""Where clouds keep a machine's credentials."""


@define(eq=False)
class Resolver:
    """Somebody else's name server: each question has the next of these answers, the last one for ever."""

    answers: Sequence[Sequence[str]]
    asked: int = field(default=0, init=False)

    def getaddrinfo(self, _host: str, port: int, **_more: Any) -> Any:
        """Answer."""
        addresses = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]


@pytest.fixture
def tell(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> Tell:
    """Send to a name that is answered for in this way; return what became of it, and how often the name was looked up."""

    async def told(*answers: Sequence[str]) -> tuple[Outcome, int]:
        resolver = Resolver(answers)
        monkeypatch.setattr("node.hooks.network.getaddrinfo", resolver.getaddrinfo)
        url = receiver.url.replace("127.0.0.1", "rebinds.test")
        outcome = await send(url, MESSAGE, allowed=networks(HERE), deadline=10, agent="test", authorities=None)
        return outcome, resolver.asked

    return told


async def test_a_name_that_changes_its_mind(receiver: Receiver, tell: Tell) -> None:
    """The connection goes to the address that was looked at: the name is looked up once, and what it says later changes nothing."""
    assert await tell(["127.0.0.1"], [INSIDE]) == (Outcome(True), 1)
    assert len(receiver.got) == 1
    assert receiver.got[0].headers["host"].startswith("rebinds.test")


@pytest.mark.parametrize("answer", [[INSIDE], ["127.0.0.1", INSIDE], [INSIDE, "127.0.0.1"], ["10.1.2.3"]])
async def test_a_name_that_leads_inside_too(receiver: Receiver, tell: Tell, answer: Sequence[str]) -> None:
    """One address that is not allowed is enough to send nothing, wherever it stands."""
    outcome, _ = await tell(answer)
    assert not outcome.taken
    assert "is not a public address" in outcome.reason
    assert receiver.got == []


async def test_a_redirect_is_no_detour(receiver: Receiver, tell: Tell) -> None:
    """A receiver that sends elsewhere has not taken the message, and nobody looks where it points to."""
    receiver.mode = "redirect"
    assert await tell(["127.0.0.1"]) == (Outcome(False, "it answered 307"), 1)
    assert len(receiver.got) == 1


async def test_name_servers_that_never_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many names wait for a name server that never answers, what hashes for pushes has its threads."""
    answering = threading.Event()

    def asked(*_given: Any, **_more: Any) -> Any:
        answering.wait(30)
        raise socket.gaierror

    monkeypatch.setattr("node.hooks.network.getaddrinfo", asked)
    monkeypatch.setattr("socket.getaddrinfo", asked)
    outcomes = []

    async def tell_one(number: int) -> None:
        url = f"http://{number}.dead.test/"
        outcomes.append(await send(url, MESSAGE, allowed=(), deadline=0.5, agent="test", authorities=None))

    try:
        async with trio.open_nursery() as nursery:
            for number in range(60):
                nursery.start_soon(tell_one, number)
        assert outcomes == [Outcome(False, "no answer within 0.5 seconds")] * 60
        with trio.fail_after(5):
            assert await in_thread(1 << 20, lambda: "hashed") == "hashed"
    finally:
        answering.set()
