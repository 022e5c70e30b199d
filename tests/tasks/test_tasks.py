"""The package of tasks itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

import llamaconv.tasks


def test_tasks_are_imported_when_asked_for() -> None:
    """Importing the package imports no task and no torch; an attribute imports its task."""
    script = (
        "import sys, llamaconv.tasks\n"
        "assert not {'torch', 'pydantic', 'llamaconv.tasks.inspect'} & sys.modules.keys()\n"
        "assert callable(llamaconv.tasks.inspect.inspect)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_unknown_tasks_are_attribute_errors() -> None:
    """A name that is no task's is missing, as in any module."""
    with pytest.raises(AttributeError, match=r"^module 'llamaconv\.tasks' has no attribute 'fly'$"):
        llamaconv.tasks.fly  # noqa: B018 - the access is what is tested
