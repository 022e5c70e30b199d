"""Progress bars; imported only where there is a terminal to show them."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as Display
from rich.table import Column
from rich.text import Text

from llamaconv.cli.progress import Clock, Pace, Stopwatch, done_of
from llamaconv.cli.tables import duration
from llamaconv.errors import printable
from llamaconv.progress import Progress, Report

__all__ = ["Bars", "bars", "shortened"]

_SECONDS_BETWEEN_UPDATES = 0.1  # tasks report more often than anyone can read

_SHARD = re.compile(r"\d+(?=-of-\d+)")

# Columns of the terminal: figures such as "999 MB of 4.98 GB 82.9 MB/s 1:02:03 left", bars, and names of parts.
_FIGURES, _BAR, _NARROW_BAR, _NAME, _SHORT_NAME, _TAIL = 44, 24, 8, 34, 10, 6


class TimeLeft(ProgressColumn):
    """Counts down between reports, which may lie minutes apart; of a finished task, what it took."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(Column(no_wrap=True))
        self._clock = clock

    def render(self, task: Task) -> Text:
        due = task.fields["due"]
        if task.finished or due is None:
            return Text(duration(task.elapsed or 0))
        return Text(f"{duration(max(due - self._clock(), 0))} left")


@contextmanager
def bars() -> Iterator[Report]:
    """A bar for each task, and below it one for each of its parts in hand, gone when the context is left.

    What is written to stderr appears above them.
    """
    report = Bars(Console(stderr=True, highlight=False, markup=False, emoji=False))
    with report.display:
        yield report


class Bars:
    """Bars for what is reported.

    Args:
        console: Where they are drawn.
        clock: Seconds.

    Attributes:
        display: Draws them while its context lasts.
    """

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        bar = _BAR if console.width >= _NAME + _BAR + _FIGURES else _NARROW_BAR
        self._width = min(max(console.width - bar - _FIGURES, _SHORT_NAME), _NAME)
        self.display = _display(console, bar, clock)
        self._clock = clock
        self._stopwatch = Stopwatch(clock)
        self._lock = Lock()
        self._wholes: set[str] = set()
        self._bars: dict[tuple[str, str], TaskID] = {}
        self._due: dict[tuple[str, str], float] = {}

    def __call__(self, step: Progress) -> None:
        with self._lock:
            self._take(step)

    def _take(self, step: Progress) -> None:
        key, now = (step.within, step.task), self._clock()
        fell, pace = self._stopwatch.restarted(step), self._stopwatch.measure(step)
        if step.within:
            self._wholes.add(step.within)
            if step.done >= step.total:
                self._forget(key)
                return
            # A part that is done before anyone could read its name gets no bar.
            self._due.setdefault(key, now + _SECONDS_BETWEEN_UPDATES)
        if not fell and step.done < step.total and now < self._due.get(key, now):
            return
        self._due[key] = now + _SECONDS_BETWEEN_UPDATES
        if fell:
            self._fall(step)
        self._show(step, pace, now)

    def _fall(self, step: Progress) -> None:
        """What lost ground keeps its bar, with a new clock; what is done once more gets another."""
        key = (step.within, step.task)
        if step.within or step.task in self._wholes:
            if key in self._bars:
                self.display.reset(self._bars[key])
        else:
            del self._bars[key]

    def _show(self, step: Progress, pace: Pace, now: float) -> None:
        key = (step.within, step.task)
        shown: dict[str, Any] = {
            "done_of": done_of(step),
            "rate": pace.describe(step.unit),
            "due": None if pace.left is None else now + pace.left,
            "detail": printable(step.detail),
        }
        if key not in self._bars:
            name = printable(step.task)
            name = f"  {shortened(name, self._width - 2)}" if step.within else name
            self._bars[key] = self.display.add_task(name, total=step.total, **shown)
        self.display.update(self._bars[key], completed=step.done, total=step.total, **shown)

    def _forget(self, part: tuple[str, str]) -> None:
        self._due.pop(part, None)
        if part in self._bars:
            self.display.remove_task(self._bars.pop(part))


def shortened(name: str, width: int) -> str:
    """``name`` in at most ``width`` characters: both ends of it; of a shard's, its number whatever else goes."""
    if len(name) <= width:
        return name
    tail = min(_TAIL, width // 2)
    if shard := _SHARD.search(name):
        tail = min(tail, max(width - shard.end() - 1, 0))
    head = width - tail - 1
    if not shard or shard.end() <= head:
        return f"{name[:head]}…{name[len(name) - tail :]}"
    number = shard[0]
    if (before := width - len(number) - 2) < 0:
        return f"…{number}"[:width]
    return f"{name[:before]}…{number}…"


def _display(console: Console, bar: int, clock: Clock) -> Display:
    detail = Column(no_wrap=True, overflow="ellipsis", ratio=1)
    return Display(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=bar),
        TextColumn("{task.fields[done_of]}", markup=False),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeLeft(clock),
        TextColumn("{task.fields[detail]}", markup=False, table_column=detail),
        console=console,
        get_time=clock,
        transient=True,
        refresh_per_second=4,
        expand=True,
    )
