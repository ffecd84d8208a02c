"""The record of what clients did: operations with their times, what was acknowledged or seen, and every request that failed."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import trio
from attrs import Factory, define, field, frozen

Kind = Literal["push", "pull", "look", "delete"]
"""`look` reads a tag without pulling; `delete` deletes a tag."""


_UNAVAILABLE = re.compile(r'at registry: 503 .*"UNAVAILABLE".*"digest": "([^"]+)", "sources": \{"')


class WrongBytes(Exception):
    """A complete answer whose bytes are not those that were asked for."""


@frozen
class Failure:
    """One request that failed, whether or not the client tried again."""

    began: float
    ended: float
    reason: str
    moved: float = 0.0
    """When a byte of its body, or of its answer's, was last taken."""

    @property
    def silence(self) -> float:
        """Seconds that nothing happened before it failed. A body may take as long as the machine is busy."""
        return self.ended - max(self.began, self.moved)

    @property
    def unavailable_digest(self) -> str | None:
        """The blob of which a node said that no store which has it can be reached."""
        found = _UNAVAILABLE.search(self.reason)
        return None if found is None else found[1]


@define(eq=False)
class Operation:
    """One operation of a client. Seconds on Trio's clock."""

    kind: Kind
    client: str
    door: str
    """`streams` or `redirects`, or the name of a node."""
    repository: str
    tag: str | None
    began: float
    version: int | None = None
    """What a push or a delete writes (they count together, per tag), and what a pull or look saw: None for no such tag."""
    digest: str | None = None
    ended: float = 0.0
    ok: bool = False
    """A push or a delete: acknowledged. A pull or look: answered, be it with 404 for the tag."""
    warm: bool = False
    """It asked only for what its nodes had been asked for shortly before."""
    retries: bool = True
    """Whether its client tries again."""
    error: str = ""
    failures: list[Failure] = Factory(list)
    wrong: list[str] = Factory(list)

    @property
    def seconds(self) -> float:
        return self.ended - self.began


@define
class History:
    """All operations, in the order in which they began."""

    operations: list[Operation] = field(factory=list)

    @contextmanager
    def record(self, operation: Operation) -> Iterator[Operation]:
        """Note an operation; one that raises what `client` raises is noted as failed, and goes no further."""
        self.operations.append(operation)
        try:
            yield operation
            operation.ok = True
        except WrongBytes as error:
            operation.wrong.append(str(error))
            operation.error = str(error)
        except RequestFailed as error:
            operation.error = str(error)
        finally:
            operation.ended = trio.current_time()

    def of(self, *kinds: Kind) -> list[Operation]:
        return [operation for operation in self.operations if operation.kind in kinds]


class RequestFailed(Exception):
    """A client has given an operation up."""
