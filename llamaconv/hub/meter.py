"""How far a download is, for its progress bars: often enough for the eye, seldom enough for the wire."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from llamaconv.progress import Progress, Report

if TYPE_CHECKING:
    from llamaconv.hub.transfer import Transfer

__all__ = ["DOWNLOADING", "Meter"]

DOWNLOADING = "downloading"
_SECONDS_BETWEEN_REPORTS = 0.1


class Meter:
    """Adds up what the connections receive.

    Args:
        report: Told now and then; never by two threads at a time.
        total: Bytes of all files wanted.
        there: Bytes of them that lie whole in their place.
    """

    def __init__(self, report: Report, total: int, there: int) -> None:
        self._report = report
        self._total = total
        self._there = there
        self._files: dict[str, int] = {}
        self._due: dict[str, float] = {}
        self._lock = threading.Lock()

    def moved(self, transfer: Transfer, *, at_once: bool = False) -> None:
        """Told when a file's part has grown or was emptied."""
        name, now = transfer.file.name, time.monotonic()
        done = transfer.part.done
        if done < transfer.file.size and not at_once and now < self._due.get(name, 0.0):
            return
        with self._lock:
            self._due[name] = now + _SECONDS_BETWEEN_REPORTS
            self._files[name] = done
            reached = self._there + sum(self._files.values())
            self._report(Progress(DOWNLOADING, reached, self._total, "bytes"))
            self._report(Progress(name, done, transfer.file.size, "bytes", within=DOWNLOADING))
