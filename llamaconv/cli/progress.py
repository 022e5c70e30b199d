"""Progress on stderr: bars on a terminal, otherwise a line now and then."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from threading import Lock

from llamaconv.cli.streams import note
from llamaconv.cli.tables import duration, size
from llamaconv.progress import Progress, Report, silent

__all__ = ["Clock", "Lines", "Pace", "Stopwatch", "done_of", "progress"]

_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BEFORE_A_PACE = 1.0  # sooner, it is anything

Clock = Callable[[], float]


def progress(quiet: bool) -> AbstractContextManager[Report]:
    """The context in which progress is shown, if at all."""
    if quiet or sys.stderr is None:
        return nullcontext(silent)
    if sys.stderr.isatty() and os.environ.get("TERM") not in {None, "", "dumb"}:
        from llamaconv.cli.bars import bars

        return bars()
    return nullcontext(Lines(note))


@dataclass(frozen=True)
class Pace:
    """How fast it goes.

    Attributes:
        rate: Units a second, None until something is done.
        left: Seconds to go at that rate.
    """

    rate: float | None = None
    left: float | None = None

    def describe(self, unit: str) -> str:
        """The rate in words, empty if there is none yet."""
        if self.rate is None or unit == "work":
            return ""
        if unit == "bytes":
            return f"{size(self.rate)}/s"
        return f"{self.rate:.3g} {unit}/s" if self.rate >= 1 else f"{1 / self.rate:.3g} s each"


class Stopwatch:
    """Measures pace from the first report of a task, which may begin in the middle of the work."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began: dict[tuple[str, str], tuple[float, float]] = {}
        self._reached: dict[tuple[str, str], float] = {}

    def restarted(self, step: Progress) -> bool:
        """Whether the task has got further than ``step`` before."""
        return step.done < self._reached.get((step.within, step.task), step.done)

    def measure(self, step: Progress) -> Pace:
        """The pace at which ``step`` was reached."""
        now, key = self._clock(), (step.within, step.task)
        if key not in self._began or self.restarted(step):
            self._began[key] = step.done, now
        self._reached[key] = step.done
        first, began = self._began[key]
        done, seconds = step.done - first, now - began
        if done <= 0 or seconds <= 0:
            return Pace()
        return Pace(done / seconds, max(step.total - step.done, 0) * seconds / done)


class Lines:
    """Progress for a log: at most one line in ten seconds, and one for the end of each task. Parts of a task have none.

    The first line waits for something done and a pace to tell, unless the report says what is in hand. A task that had
    nothing to do has none.

    Args:
        write: Takes a line, without its newline.
        clock: Seconds.
    """

    def __init__(self, write: Callable[[str], None], clock: Clock = time.monotonic) -> None:
        self._write = write
        self._clock = clock
        self._stopwatch = Stopwatch(clock)
        self._due = -float("inf")
        self._under_way: dict[str, float] = {}
        self._lock = Lock()

    def __call__(self, step: Progress) -> None:
        if step.within:
            return
        with self._lock:
            self._tell(step)

    def _tell(self, step: Progress) -> None:
        pace, now = self._stopwatch.measure(step), self._clock()
        ended = step.done >= step.total
        if ended:
            if self._under_way.pop(step.task, None) is None:
                return
        else:
            paced = now >= self._under_way.setdefault(step.task, now) + _SECONDS_BEFORE_A_PACE
            if now < self._due or not (step.detail or (step.done and paced)):
                return
        self._due = now + _SECONDS_BETWEEN_LINES
        parts = [f"{step.task}: {done_of(step)}", pace.describe(step.unit)]
        if pace.left is not None and not ended:
            parts.append(f"{duration(pace.left)} left")
        self._write(", ".join(part for part in (*parts, step.detail) if part))


def done_of(step: Progress) -> str:
    """How far a task is: "3 of 8 blocks"."""
    if step.unit == "work":  # arithmetic that tells nobody anything but its share
        return f"{100 * step.done / step.total if step.total else 100:.0f} %"
    if step.unit == "bytes":
        return f"{size(step.done)} of {size(step.total)}"
    return f"{step.done:,.10g} of {step.total:,.10g} {step.unit}"
