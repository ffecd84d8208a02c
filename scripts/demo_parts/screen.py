"""What the user sees: bars and live tables on a terminal, plain lines elsewhere."""

import contextlib
from collections.abc import Iterator
from typing import Protocol

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from .image import Blob


def mib(nbytes: int) -> str:
    """Return a size for people."""
    return f"{nbytes / (1 << 20):.1f} MiB" if nbytes >= 100 << 10 else f"{nbytes / (1 << 10):.1f} KiB"


class Transfers(Protocol):
    """Blobs on their way."""

    def moved(self, blob: Blob, nbytes: int) -> None:
        """Take in that `nbytes` more of a blob have moved."""
        ...

    def done(self, blob: Blob, remark: str = "") -> None:
        """Take in that a blob has arrived; the remark stands beside it."""
        ...


class Screen:
    """Writes to standard output."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self._steps = 0

    def step(self, title: str) -> None:
        """Begin the next step of the story."""
        self._steps += 1
        self._print(f"\n{self._steps}. {title}", "bold cyan")

    def say(self, text: str) -> None:
        """Print a line below the step."""
        self._print(f"   {text}")

    def good(self, text: str) -> None:
        """Print a line about something that went as promised."""
        self._print(f"   {text}", "green")

    def note(self, text: str) -> None:
        """Print a line that the user must not miss."""
        self._print(f"   Note: {text}", "yellow")

    def bad(self, text: str) -> None:
        """Print what failed."""
        self._print(text, "bold red")

    def plain(self, text: str) -> None:
        """Print lines as they are, to be copied."""
        self._print(text)

    def _print(self, text: str, style: str = "") -> None:
        self.console.print(Text(text, style=style))

    @contextlib.contextmanager
    def work(self, title: str, total: int) -> Iterator["Work"]:
        """Show one bar for `total` bytes of work; on no terminal nothing until it is over."""
        if not self.console.is_terminal:
            yield Work(None, TaskID(0))
            return
        with self._progress() as progress:
            yield Work(progress, progress.add_task(title, total=total, remark=""))

    @contextlib.contextmanager
    def transfers(self, blobs: tuple[Blob, ...]) -> Iterator[Transfers]:
        """Show a bar for every blob and one for all; on no terminal a line for every blob that has arrived."""
        if not self.console.is_terminal:
            yield _Lines(self)
            return
        with self._progress() as progress:
            tasks = {blob.digest: progress.add_task(blob.title, total=blob.size, remark="") for blob in blobs}
            total = progress.add_task("together", total=sum(blob.size for blob in blobs), remark="")
            yield _Bars(progress, tasks, total)

    @contextlib.contextmanager
    def arrivals(self, blobs: tuple[Blob, ...], heading: str) -> Iterator[Transfers]:
        """Show a table of blobs that changes while they arrive; on no terminal a line for every one."""
        if not self.console.is_terminal:
            yield _Lines(self)
            return
        table = _Arrivals(blobs, heading)
        with Live(table.render(), console=self.console, refresh_per_second=10) as live:
            table.live = live
            yield table

    def _progress(self) -> Progress:
        return Progress(
            TextColumn("   {task.description:<24}"),
            BarColumn(bar_width=30),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TextColumn("{task.fields[remark]}"),
            console=self.console,
        )


class Work:
    """One bar."""

    def __init__(self, progress: Progress | None, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def advance(self, nbytes: int) -> None:
        """Take in that `nbytes` more are done."""
        if self._progress is not None:
            self._progress.advance(self._task, nbytes)


class _Lines:
    def __init__(self, screen: Screen) -> None:
        self._screen = screen

    def moved(self, blob: Blob, nbytes: int) -> None:
        pass

    def done(self, blob: Blob, remark: str = "") -> None:
        self._screen.say(f"  {blob.title:<22} {mib(blob.size):>10}  {blob.digest[:19]}  {remark}".rstrip())


class _Bars:
    def __init__(self, progress: Progress, tasks: dict[str, TaskID], total: TaskID) -> None:
        self._progress = progress
        self._tasks = tasks
        self._total = total

    def moved(self, blob: Blob, nbytes: int) -> None:
        self._progress.advance(self._tasks[blob.digest], nbytes)
        self._progress.advance(self._total, nbytes)

    def done(self, blob: Blob, remark: str = "") -> None:
        self._progress.update(self._tasks[blob.digest], completed=blob.size, remark=remark)


class _Arrivals:
    def __init__(self, blobs: tuple[Blob, ...], heading: str) -> None:
        self._blobs = blobs
        self._heading = heading
        self._remarks: dict[str, str] = {}
        self.live: Live | None = None

    def moved(self, blob: Blob, nbytes: int) -> None:
        pass

    def done(self, blob: Blob, remark: str = "") -> None:
        self._remarks[blob.digest] = remark
        if self.live is not None:
            self.live.update(self.render())

    def render(self) -> RenderableType:
        table = Table("blob", "digest", "size", self._heading)
        for blob in self._blobs:
            remark = self._remarks.get(blob.digest)
            cell = Text("on its way", style="yellow") if remark is None else Text(remark, style="green")
            table.add_row(blob.title, blob.digest[:19], mib(blob.size), cell)
        return table
