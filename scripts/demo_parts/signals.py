"""Signals that ask the demo to stop, raised where they can be caught and held where they would break something."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(BaseException):
    """A signal asked us to stop; carries its number."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """SIGINT, SIGTERM and SIGHUP, from now on: each raises `Interrupted` in the main thread, except while it is held."""

    def __init__(self) -> None:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        # Under nohup a hang-up is to be ignored.
        self.numbers = tuple(number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN)
        self.pending: int | None = None
        """The signal that came while it was held."""
        self._held = False
        for number in self.numbers:
            signal.signal(number, self._take)

    def _take(self, number: int, _frame: FrameType | None) -> None:
        if not self._held:
            raise Interrupted(number)
        self.pending = number

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold signals: one that comes raises `Interrupted` when the block has ended well."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self.pending is not None:
            raise Interrupted(self.pending)

    def ignore(self) -> None:
        """Ignore all further signals."""
        self._held = True
