"""llamaconv in a process of its own, with one command more: ``act`` of stand_in.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_LAUNCH = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background jobs
from llamaconv.cli import app, main
app.modules = {**app.modules, "act": "tests.cli.stand_in"}
sys.exit(main())
"""


def command_line(*arguments: str | Path) -> list[str]:
    """What starts llamaconv with these arguments."""
    return [sys.executable, "-c", _LAUNCH, *map(str, arguments)]


def environment(**extra: str) -> dict[str, str]:
    """The tests' own, less what colors and widens output."""
    plain = {
        name: value
        for name, value in os.environ.items()
        if name not in {"FORCE_COLOR", "NO_COLOR", "COLUMNS", "PYTHONWARNINGS", "TRANSFORMERS_VERBOSITY"}
    }
    return {**plain, "PYTHONPATH": str(Path(__file__).parents[2]), **extra}


def run(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run llamaconv to its end; both streams are captured unless ``options`` say otherwise."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    settings: dict[str, Any] = {"text": True, "env": environment(), **streams, **options}
    return subprocess.run(command_line(*arguments), check=False, **settings)
