"""Whatever kills the process: OUT is absent, or the old one, or whole, and the next run goes through."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sinks.processes import run_mounted, run_python

SCRIPT = Path(__file__).with_name("kill_each_line.py")
IN_MEMORY = Path("/dev/shm")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is such a thing: thousands of syncs wear a disk for nothing."""
    with tempfile.TemporaryDirectory(dir=IN_MEMORY if IN_MEMORY.is_dir() else tmp_path) as name:
        yield Path(name)


def found(output: str, errors: str) -> Counter[str]:
    """What OUT was after each kill; the next run must always have gone through cleanly."""
    assert errors == ""
    kills = [json.loads(line) for line in output.splitlines()]
    assert [kill for kill in kills if not kill[2]] == []
    return Counter(str(state) for _, state, _ in kills)


@pytest.mark.parametrize(
    ("mode", "states", "least"),
    [
        ("fresh", {"absent", "new"}, 200),
        ("overwrite", {"old", "new"}, 200),
        ("here", {"unmarked", "new"}, 200),
        ("renames", {"old", "absent", "new"}, 15),
    ],
)
def test_a_kill_at_any_line_leaves_no_half_output(folder: Path, mode: str, states: set[str], least: int) -> None:
    """Fresh, over an old one, in the current directory, and by two renames; "unmarked" has no manifest."""
    done = run_python(SCRIPT, folder, mode, "1")
    counts = found(done.stdout, "\n".join(line for line in done.stderr.splitlines() if "cleared" not in line))
    assert done.returncode == 0
    assert set(counts) == states
    assert counts.total() >= least


def test_a_kill_at_any_line_on_a_volume_leaves_a_mark_only_on_a_whole_output(tmp_path: Path) -> None:
    """Where OUT is a mount point, it has a manifest only while it is wholly the old or wholly the new one."""
    (tmp_path / "room" / "out").mkdir(parents=True)
    script = f"import runpy, sys; sys.argv[1:] = [sys.argv[1], 'volume', '1']; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    done = run_mounted(
        'mount -t tmpfs none "$1" && mkdir -p "$1/room/out" && mount -t tmpfs none "$1/room/out"', script, tmp_path
    )
    counts = found(done.stdout, "\n".join(line for line in done.stderr.splitlines() if "cleared" not in line))
    assert done.returncode == 0
    assert set(counts) == {"old", "unmarked", "new"}
