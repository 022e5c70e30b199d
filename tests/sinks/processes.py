"""Other processes for tests: with mounts of their own, or killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import llamaconv

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(llamaconv.__file__).parents[1])}


def run_python(script: Path, *args: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a script in a new interpreter that finds the same package."""
    command = [sys.executable, script, *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)


def run_mounted(mount: str, script: str, *args: str | Path) -> subprocess.CompletedProcess[str]:
    """Run lines of Python after the shell command ``mount``, whose ``$1`` is the first argument."""
    shell = f'{mount} || exit 99; exec "$0" -c "$SCRIPT" "$@"'
    try:
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", shell, sys.executable, *args],
            capture_output=True,
            text=True,
            check=False,
            env={**ENVIRONMENT, "SCRIPT": script},
        )
    except FileNotFoundError:
        pytest.skip("there is no unshare")
    if done.returncode == 99 or done.stderr.startswith("unshare:"):
        pytest.skip(f"mounting is not allowed: {done.stderr}")
    return done
