"""How far a download is, for its progress bars: often enough for the eye, seldom enough for the wire."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
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
        there: Bytes of them that are there already.
        begun: Of these, the bytes of files that are to be fetched on, by name.
    """

    def __init__(self, report: Report, total: int, there: int, begun: Mapping[str, int]) -> None:
        self._report = report
        self._total = total
        self._reached = there
        self._files = dict(begun)
        self._due: dict[str, float] = {}
        self._lock = threading.Lock()
        report(Progress(DOWNLOADING, there, total, "bytes"))

    def moved(self, transfer: Transfer) -> None:
        """Told when a file's part has grown, or was emptied and grows again."""
        name, now = transfer.file.name, time.monotonic()
        if now < self._due.get(name, 0.0) and transfer.part.done < transfer.file.size:
            return
        with self._lock:
            done = transfer.part.done
            self._due[name] = now + _SECONDS_BETWEEN_REPORTS
            self._reached += done - self._files.get(name, 0)
            self._files[name] = done
            self._report(Progress(DOWNLOADING, self._reached, self._total, "bytes"))
            self._report(Progress(name, done, transfer.file.size, "bytes", within=DOWNLOADING))
