"""How verbs show what they found: JSON for programs, tables for people. Loads nothing of the node."""

import json
import sys
from collections.abc import Mapping, Sequence

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

_NO_WIDTH = 100_000
"""Columns where nobody looks: a row is a line then, and a digest one word, for grep."""


def show(document: object, output: str, *tables: tuple[str, Sequence[Mapping[str, object]]]) -> None:
    """Print a document as JSON, or its tables (title and rows with the same keys) for people."""
    if output == "json":
        click.echo(json.dumps(document, indent=2))
        return
    console = Console(width=None if _on_a_terminal() else _NO_WIDTH, highlight=False)
    # Written by click, as everything else is: rich ends the program itself where nobody reads any more.
    with console.capture() as captured:
        for title, rows in tables:
            if not rows:
                console.print(f"{title}: none" if title else "none", markup=False)
                continue
            if title:
                # By itself: a table folds its title to its own width.
                console.print(Text(_plain(title), "table.title"))
            table = Table(box=None, pad_edge=False)
            for name in rows[0]:
                table.add_column(name.replace("_", " "), overflow="fold")
            for row in rows:
                table.add_row(*(Text(_plain(_cell(value))) for value in row.values()))
            console.print(table)
    click.echo(captured.get(), nl=False)


def _on_a_terminal() -> bool:
    # A program that was started without a standard output has None.
    return sys.stdout is not None and sys.stdout.isatty()


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.1f}"
    if isinstance(value, tuple | list):
        return ", ".join(str(item) for item in value)
    return str(value)


def _plain(text: str) -> str:
    """Return a text without anything that a terminal obeys: others than who reads a table have written what is in it."""
    return text if text.isprintable() else "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def size(nbytes: int) -> str:
    """Return a number of bytes for people."""
    amount = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount < 1024 or unit == "TiB":
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    raise AssertionError("unreachable")
