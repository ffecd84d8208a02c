"""Deletes dead objects, store by store: what one store cannot do now, it is asked again later, and no other waits for it."""

from collections.abc import Callable, Mapping

import trio
from attrs import frozen

from engines.contract import Engine, EngineError
from replication.model import DeadObject
from replication.plan import backoff
from replication.ports import Ledger


@frozen
class SweeperSettings:
    """Durations in seconds."""

    at_once: int = 4
    """Deletes in flight per location."""
    most: int = 100
    """Dead objects claimed in one go."""
    lease_seconds: float = 120.0
    delete_deadline: float = 30.0
    backoff_cap: float = 600.0


@frozen
class SweepReport:
    """How many objects went and how many could not."""

    deleted: int = 0
    failed: int = 0


class Sweeper:
    """Deletes what the ledger says is dead. `jitter` returns a number in [0, 1)."""

    def __init__(
        self,
        engines: Mapping[str, Engine],
        ledger: Ledger,
        jitter: Callable[[], float],
        settings: SweeperSettings | None = None,
    ) -> None:
        self._engines = engines
        self._ledger = ledger
        self._jitter = jitter
        self._settings = settings or SweeperSettings()

    async def sweep(self, location: str) -> SweepReport:
        """Delete what is due at `location`, at most one claim of it. Raises LedgerUnavailable.

        Deleting twice is harmless: every key is used once. A sweep that is cut off is repeated when its lease has run out.
        """
        settings = self._settings
        claimed = await self._ledger.claim_dead(location, settings.most, settings.lease_seconds)
        if not claimed:
            return SweepReport()
        deleted: list[int] = []
        failed: list[tuple[DeadObject, str]] = []
        todo = iter(claimed)

        async def worker() -> None:
            for dead in todo:
                error = await self._delete(dead)
                if error is None:
                    deleted.append(dead.id)
                else:
                    failed.append((dead, error))

        # Half of the lease: whatever is not begun by then is left to the next claim.
        with trio.move_on_after(settings.lease_seconds / 2):
            async with trio.open_nursery() as nursery:
                for _ in range(min(settings.at_once, len(claimed))):
                    nursery.start_soon(worker)
        if deleted:
            await self._ledger.finish_dead(deleted)
        for dead, error in failed:
            retry_after = backoff(dead.attempts + 1, self._jitter(), cap=settings.backoff_cap)
            await self._ledger.fail_dead([dead.id], error, retry_after)
        return SweepReport(len(deleted), len(failed))

    async def _delete(self, dead: DeadObject) -> str | None:
        """Delete one object with whatever multi-part write is open under its key; return what went wrong."""
        engine = self._engines[dead.location]
        try:
            with trio.move_on_after(self._settings.delete_deadline) as scope:
                await engine.abandon_parts(dead.key)
                await engine.delete(dead.key)
        except EngineError as error:
            return f"{type(error).__name__}: {error}"
        if scope.cancelled_caught:
            return f"not deleted within {self._settings.delete_deadline:g} s"
        return None
