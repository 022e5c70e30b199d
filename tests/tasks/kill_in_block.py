"""Quantizes SOURCE into OUT with TOKENS, and kills itself with SIGKILL when it begins on the step called STEP."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from llamaconv.progress import Progress
from tests.tasks.runs import run

source, out, tokens, step = sys.argv[1:]


def report(progress: Progress) -> None:
    if progress.detail == step:
        os.kill(os.getpid(), signal.SIGKILL)


run(Path(source), Path(out), calibration=Path(tokens), report=report)
