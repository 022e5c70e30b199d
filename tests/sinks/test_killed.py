"""Whatever kills the process: OUT is absent, or the old one, or whole, and the next run goes through."""

from __future__ import annotations

import json
import subprocess
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


def found(done: subprocess.CompletedProcess[str]) -> Counter[str]:
    """What OUT was after each kill; the next run must always have gone through and left nothing else."""
    assert [line for line in done.stderr.splitlines() if "cleared what an unfinished run" not in line] == []
    assert done.returncode == 0
    kills = [json.loads(line) for line in done.stdout.splitlines()]
    assert [kill for kill in kills if not kill[2]] == []
    return Counter(str(state) for _, state, _ in kills)


@pytest.mark.parametrize(
    ("mode", "states", "least"),
    [
        ("tensors", {"absent", "new"}, 200),
        ("fresh", {"absent", "new"}, 150),
        ("overwrite", {"old", "new"}, 200),
        ("here", {"unmarked", "new"}, 200),
        ("renames", {"old", "absent", "new"}, 15),
    ],
)
def test_a_kill_at_any_line_leaves_no_half_output(folder: Path, mode: str, states: set[str], least: int) -> None:
    """With shards, fresh, over an old one, in the current directory ("unmarked": no manifest), by two renames."""
    counts = found(run_python(SCRIPT, folder, mode))
    assert set(counts) == states
    assert counts.total() >= least


def test_a_kill_at_any_line_on_a_volume_leaves_a_mark_only_on_a_whole_output(tmp_path: Path) -> None:
    """Where OUT is a mount point, it has a manifest only while it is wholly the old or wholly the new one."""
    mount = 'mount -t tmpfs none "$1" && mkdir -p "$1/room/out" && mount -t tmpfs none "$1/room/out"'
    start = f"import runpy; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    assert set(found(run_mounted(mount, start, tmp_path, "volume"))) == {"old", "unmarked", "new"}
