"""Converts SOURCE into OUT in the layout TO, and kills itself with SIGKILL at the "begin" or the "end" of the work."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from llamaconv.progress import Progress
from llamaconv.tasks.convert import ConvertSettings, convert

source, out, layout, point = sys.argv[1:]


def report(progress: Progress) -> None:
    if progress.done == (0 if point == "begin" else progress.total):
        os.kill(os.getpid(), signal.SIGKILL)


convert(Path(source), Path(out), ConvertSettings(layout), report)
