"""Results as people read them: Markdown tables, and bar charts as small SVG files."""

import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from math import log10
from pathlib import Path

from attrs import field, frozen

_COLOURS = ("#2563eb", "#9ca3af", "#d97706", "#059669", "#7c3aed")
_WIDTH, _LABEL, _BAR, _GAP = 760, 250, 16, 14


@frozen
class Chart:
    """Bars in groups: by group, by series, the value. `logarithmic` where values are far apart."""

    title: str
    unit: str
    groups: Mapping[str, Mapping[str, float]]
    logarithmic: bool = False


@frozen
class Outcome:
    """What one question came to."""

    name: str
    title: str
    header: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    chart: Chart
    notes: Sequence[str] = field(factory=tuple)

    def markdown(self) -> str:
        """Return heading, plot, table and notes."""
        rule = ["---", *("---:" for _ in self.header[1:])]
        lines = [_row(self.header), _row(rule), *(_row(row) for row in self.rows)]
        notes = "\n".join(f"- {note}" for note in self.notes)
        return f"## {self.title}\n\n![{self.chart.title}]({self.name}.svg)\n\n" + "\n".join(lines) + f"\n\n{notes}\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def circumstances() -> str:
    """Return the line that says where and when figures were taken."""
    when, system = datetime.now(UTC).strftime("%Y-%m-%d"), platform.release().split("-")[0]
    cores, load = os.cpu_count(), os.getloadavg()[0]
    return f"{when}; {cores} cores, Python {platform.python_version()}, Linux {system}; load {load:.1f}."


def write(outcome: Outcome, folder: Path) -> None:
    """Write the plot and the table of one question into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{outcome.name}.svg").write_text(draw(outcome.chart))
    (folder / f"{outcome.name}.md").write_text(f"{outcome.markdown()}\n{circumstances()}\n")


def draw(chart: Chart) -> str:
    """Return horizontal bars as an SVG document, readable on light and dark pages."""
    series = list(dict.fromkeys(name for bars in chart.groups.values() for name in bars))
    most = max((value for bars in chart.groups.values() for value in bars.values()), default=1.0) or 1.0
    room = _WIDTH - _LABEL - 90
    out, y = [], 52
    for at, name in enumerate(series):
        x = 12 + at * 180
        out.append(f'<rect x="{x}" y="30" width="11" height="11" fill="{_COLOURS[at % len(_COLOURS)]}"/>')
        out.append(f'<text x="{x + 16}" y="40">{escape(name)}</text>')
    for group, bars in chart.groups.items():
        y += _GAP
        out.append(
            f'<text x="{_LABEL - 8}" y="{y + _BAR * len(bars) / 2 + 4:g}" text-anchor="end">{escape(group)}</text>'
        )
        for name, value in bars.items():
            length = room * _share(value, most, logarithmic=chart.logarithmic)
            colour = _COLOURS[series.index(name) % len(_COLOURS)]
            out.append(f'<rect x="{_LABEL}" y="{y}" width="{length:.1f}" height="{_BAR - 3}" fill="{colour}"/>')
            out.append(f'<text x="{_LABEL + length + 5:.1f}" y="{y + 11}">{number(value)}</text>')
            y += _BAR
    scale = ", logarithmic" if chart.logarithmic else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y + 14}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n'
        f'<text x="12" y="19" font-size="14" font-weight="bold">{escape(chart.title)} ({escape(chart.unit)}{scale})</text>\n'
        + "\n".join(out)
        + "\n</svg>\n"
    )


def _share(value: float, most: float, *, logarithmic: bool) -> float:
    if not logarithmic:
        return value / most
    return max(0.02, 1 + log10(max(value, most / 10_000) / most) / 4)


def number(value: float) -> str:
    """Return a figure with three digits that count."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.3g}"


def times(value: float, other: float) -> str:
    """Return how many times `other` a value is."""
    return f"{value / other:.2g} x" if other else "-"
