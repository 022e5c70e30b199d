"""Tables and figures for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from llamaconv.errors import printable

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["amount", "duration", "facts", "grid", "number", "percent", "plural", "size"]


def facts(rows: Iterable[tuple[str, str | None]]) -> Table:
    """Names and what they are, without lines; a row without a value is left out."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        if value is not None:
            table.add_row(Text(name, "bold"), Text(printable(value)))
    return table


def grid(columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> Table:
    """A table with a heading.

    Args:
        columns: The heading.
        rows: As many cells each.
        left: How many columns hold words; the others hold figures and are aligned on the right.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def size(count: float) -> str:
    """Bytes in decimal units: 4190000 is "4.19 MB"."""
    figure, prefix = _scaled(count, ("", "k", "M", "G", "T"))
    return f"{figure} {prefix}B" if prefix else f"{figure} bytes"


def amount(count: float) -> str:
    """A count in thousands, millions or billions: 15700000 is "15.7 M"."""
    figure, prefix = _scaled(count, ("", "K", "M", "B", "T"))
    return f"{figure} {prefix}".rstrip()


def _scaled(count: float, prefixes: Sequence[str]) -> tuple[str, str]:
    """Three digits and the prefix, each prefix a thousand of the one before it."""
    place = 0
    while count >= 999.5 and place < len(prefixes) - 1:
        count, place = count / 1000, place + 1
    return (f"{count:.3g}" if count < 999.5 else f"{count:,.0f}"), prefixes[place]


def number(value: float | None, digits: int = 4) -> str:
    """``value`` to so many significant digits, or a dash."""
    return "-" if value is None else f"{value:#.{digits}g}".rstrip(".")


def percent(share: float | None) -> str:
    """A share as a percentage: 100 % is all of it, not nearly all."""
    return "-" if share is None else f"{100 * share:.5g} %"


def duration(seconds: float) -> str:
    """Seconds as a clock shows them: "0:07", "1:02:03"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def plural(count: int, noun: str) -> str:
    """A count with its noun: "1 shard", "2 shards"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
