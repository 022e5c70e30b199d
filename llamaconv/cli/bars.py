"""Progress bars; imported only where there is a terminal to show them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as Display
from rich.table import Column
from rich.text import Text

from llamaconv.cli.progress import Stopwatch, done_of
from llamaconv.cli.tables import duration
from llamaconv.errors import printable
from llamaconv.progress import Progress, Report

__all__ = ["bars"]

_SECONDS_BETWEEN_UPDATES = 0.1  # tasks report more often than anyone can read


class TimeLeft(ProgressColumn):
    """Counts down between reports, which may lie minutes apart; of a finished task, what it took."""

    def render(self, task: Task) -> Text:
        due = task.fields["due"]
        if task.finished or due is None:
            return Text(duration(task.elapsed or 0))
        return Text(f"{duration(max(due - time.monotonic(), 0))} left")


@contextmanager
def bars() -> Iterator[Report]:
    """A bar for each task, gone when the context is left. What is written to stderr appears above them."""
    detail = Column(no_wrap=True, overflow="ellipsis", ratio=1)
    display = Display(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[done_of]}", markup=False),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeLeft(),
        TextColumn("{task.fields[detail]}", markup=False, table_column=detail),
        console=Console(stderr=True, highlight=False, markup=False, emoji=False),
        transient=True,
        refresh_per_second=4,
        expand=True,
    )
    with display:
        yield _Bars(display)


class _Bars:
    def __init__(self, display: Display) -> None:
        self._display = display
        self._stopwatch = Stopwatch(time.monotonic)
        self._tasks: dict[str, TaskID] = {}
        self._due = 0.0

    def __call__(self, step: Progress) -> None:
        anew = step.task not in self._tasks or self._stopwatch.restarted(step)
        pace, now = self._stopwatch.measure(step), time.monotonic()
        if not anew and step.done < step.total and now < self._due:
            return
        self._due = now + _SECONDS_BETWEEN_UPDATES
        shown: dict[str, Any] = {
            "done_of": done_of(step),
            "rate": pace.describe(step.unit),
            "due": None if pace.left is None else now + pace.left,
            "detail": printable(step.detail),
        }
        if anew:
            self._tasks[step.task] = self._display.add_task(printable(step.task), total=step.total, **shown)
        self._display.update(self._tasks[step.task], completed=step.done, total=step.total, **shown)
