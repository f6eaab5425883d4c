"""Tables that fold: what is too wide for the terminal goes on in another table below, and no figure is cut."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console, Group
from rich.measure import Measurement
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Column:
    """A heading, which may have lines, and a cell a row."""

    heading: str
    cells: list[str]
    left: bool = False
    """Words stand at the left, figures at the right."""


def folded(title: str, columns: list[Column], console: Console) -> Group:
    """One table where the console is wide enough, else several, each of which begins with the first column."""
    key, *others = columns
    tables: list[list[Column]] = []
    for column in others:
        if tables and _fits(tables[-1] + [column], console):
            tables[-1].append(column)
        else:
            tables.append([key, column])
    return Group(*(_table(title if number == 0 else None, each) for number, each in enumerate(tables)))


def _fits(columns: list[Column], console: Console) -> bool:
    unlimited = console.options.update(width=10_000)
    return Measurement.get(console, unlimited, _table(None, columns)).maximum <= console.width


def _table(title: str | None, columns: list[Column]) -> Table:
    table = Table(title=title)
    for column in columns:
        # Where one column alone is too wide, it takes more lines.
        table.add_column(column.heading, justify="left" if column.left else "right", overflow="fold")
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*row)
    return table
