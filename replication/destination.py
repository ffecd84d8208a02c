"""The writing side of a copy: calls to the destination's engine with a deadline each, and one error for all that can go wrong."""

from collections.abc import Callable, Mapping

import trio
from attrs import evolve

from engines.contract import (
    CannotStream,
    ChunkMaker,
    Engine,
    EngineError,
    ObjectFacts,
    Part,
    PartsMissing,
    StreamingEngine,
)
from replication.model import CopyTask
from replication.ports import Ledger

UNVERIFIED = "unverified "
"""Noted before the id of a multi-part write whose parts nobody has verified: they prove nothing to another try."""


ONE_CALL = UNVERIFIED + "in one call"
"""Noted before a store is asked to copy an object by itself in one call: until somebody knows what became of that, wrong bytes may
land under the key at any time."""


class LeaseLost(Exception):
    """Somebody else has the task by now."""


class WriteFailed(Exception):
    """The destination did not do what was asked; the text says why."""


class Destination:
    """Writes objects under the keys of tasks. `deadline` returns the longest time for one call in seconds.

    Every method raises WriteFailed.
    """

    def __init__(self, engines: Mapping[str, Engine], ledger: Ledger, deadline: Callable[[], float]) -> None:
        self._engines = engines
        self._ledger = ledger
        self._deadline = deadline

    def limit(self, what: str, seconds: float | None = None) -> "Limit":
        """Return a context in which a call, named as in "it did not ...", must end."""
        return Limit(self._deadline() if seconds is None else seconds, what)

    async def begin(self, task: CopyTask, *, verified: bool = True) -> str:
        """Begin a multi-part write and let the ledger know of it, and whether its parts will be verified. Raises LeaseLost."""
        if task.claimed_before:
            # Whoever died between beginning a write and noting it left parts that nothing would ever delete: the key lives on.
            await self.abandon(task, None)
        try:
            with self.limit("begin a multi-part write"):
                upload = await self._engines[task.destination].begin_parts(task.key)
        except EngineError as error:
            raise WriteFailed(f"{type(error).__name__}: {error}") from error
        if not await self._ledger.note_parts(task, upload if verified else UNVERIFIED + upload):
            # Nobody else will ever know of it.
            await self.abandon(task, upload)
            raise LeaseLost
        return upload

    async def distrust(self, task: CopyTask) -> None:
        """Abandon the multi-part write of an earlier try, and see to it that nobody takes for its work what stands there later.

        Raises LeaseLost.
        """
        assert task.upload is not None
        upload = task.upload.removeprefix(UNVERIFIED)
        if not await self._ledger.note_parts(task, UNVERIFIED + upload):
            raise LeaseLost
        await self.abandon(task, upload)

    async def expect_whole(self, task: CopyTask) -> None:
        """Let the ledger know that an object nobody has verified is about to come under the task's key. Raises LeaseLost."""
        if not await self._ledger.note_parts(task, ONE_CALL):
            raise LeaseLost

    async def anew(self, task: CopyTask) -> CopyTask:
        """Return the task with a key that nothing was ever sent to. Raises LeaseLost."""
        key = await self._ledger.change_key(task)
        if key is None:
            raise LeaseLost
        return evolve(task, key=key, upload=None, claimed_before=False)

    async def parts(self, task: CopyTask) -> dict[int, Part] | None:
        """Return the parts that an earlier try left under the task's multi-part id, by number; None if that is not open."""
        assert task.upload is not None
        try:
            with self.limit("list the parts"):
                listed = await self._engines[task.destination].list_parts(
                    task.key, task.upload.removeprefix(UNVERIFIED)
                )
        except PartsMissing:
            return None
        except EngineError as error:
            raise WriteFailed(f"{type(error).__name__}: {error}") from error
        return {part.number: part for part in listed}

    async def is_complete(self, task: CopyTask) -> bool:
        """Return whether an object of the blob's size is under the task's key."""
        try:
            with self.limit("look at the object"):
                facts = await self._engines[task.destination].head(task.key)
        except EngineError:
            return False
        return facts.size == task.blob.size

    async def put(self, task: CopyTask, data: bytes) -> None:
        """Write the whole object."""
        try:
            with self.limit("write the object"):
                facts = await self._engines[task.destination].put(task.key, data, _known(task))
        except EngineError as error:
            raise WriteFailed(f"{type(error).__name__}: {error}") from error
        self._check(task, facts)

    async def put_stream(self, task: CopyTask, engine: StreamingEngine, chunks: ChunkMaker, patience: float) -> bool:
        """Write the whole object while `chunks` makes it, which may take `patience` seconds. Raises CannotStream."""
        try:
            with self.limit("write the object", self._deadline() + patience):
                facts = await engine.put_stream(task.key, task.blob.size, chunks, patience, _known(task))
        except CannotStream:
            raise
        except EngineError as error:
            raise WriteFailed(f"{type(error).__name__}: {error}") from error
        self._check(task, facts)
        return True

    async def put_part(self, task: CopyTask, upload: str, number: int, data: bytes) -> Part:
        """Write one part."""
        try:
            with self.limit(f"write part {number}"):
                part = await self._engines[task.destination].put_part(task.key, upload, number, data)
        except EngineError as error:
            raise WriteFailed(f"part {number}: {type(error).__name__}: {error}") from error
        if part.size != len(data):
            raise WriteFailed(f"it says it took {part.size} of {len(data)} bytes of part {number}")
        return part

    async def put_part_stream(
        self,
        task: CopyTask,
        engine: StreamingEngine,
        upload: str,
        number: int,
        size: int,
        chunks: ChunkMaker,
        patience: float,
    ) -> Part:
        """Write one part of `size` bytes while `chunks` makes it, which may take `patience` seconds. Raises CannotStream."""
        try:
            with self.limit(f"write part {number}", self._deadline() + patience):
                part = await engine.put_part_stream(task.key, upload, number, size, chunks, patience)
        except CannotStream:
            raise
        except EngineError as error:
            raise WriteFailed(f"part {number}: {type(error).__name__}: {error}") from error
        return part

    async def finish(self, task: CopyTask, upload: str, done: Mapping[int, Part]) -> None:
        """Make the parts, in the order of their numbers, the object."""
        try:
            with self.limit("finish the multi-part write"):
                facts = await self._engines[task.destination].finish_parts(
                    task.key, upload, [done[number] for number in sorted(done)]
                )
        except PartsMissing as error:
            # Going on with it would fail for ever; the next try begins anew.
            await self.abandon(task, upload)
            raise WriteFailed(f"finishing: {error}") from error
        except EngineError as error:
            raise WriteFailed(f"finishing: {type(error).__name__}: {error}") from error
        self._check(task, facts)

    async def abandon(self, task: CopyTask, upload: str | None) -> None:
        """Give up a multi-part write; with None all that are open under the task's key."""
        try:
            with self.limit("abandon a multi-part write"):
                await self._engines[task.destination].abandon_parts(task.key, upload)
        except EngineError as error:
            raise WriteFailed(f"{type(error).__name__}: {error}") from error

    def _check(self, task: CopyTask, facts: ObjectFacts) -> None:
        if facts.size != task.blob.size:
            raise WriteFailed(f"it says the object has {facts.size} of {task.blob.size} bytes")


def _known(task: CopyTask) -> str | None:
    """Return what the write can be signed with: then it is the store that compares the whole."""
    algorithm, _, encoded = task.blob.digest.partition(":")
    return encoded if algorithm == "sha256" else None


class Limit:
    """A deadline for one call that ends as `WriteFailed`."""

    def __init__(self, seconds: float, what: str) -> None:
        self._seconds = seconds
        self._what = what
        self._scope = trio.CancelScope()

    def __enter__(self) -> None:
        self._scope.deadline = trio.current_time() + self._seconds
        self._scope.__enter__()

    def __exit__(self, *raised: object) -> bool:
        swallowed = self._scope.__exit__(*raised)  # type: ignore[arg-type] # the same three values
        if self._scope.cancelled_caught:
            raise WriteFailed(f"it did not {self._what} within {self._seconds:g} s")
        return bool(swallowed)
