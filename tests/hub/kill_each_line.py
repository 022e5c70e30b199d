"""Download a repository again and again, each time killed some lines of our code later, and each time go on.

Usage: kill_each_line.py FOLDER ENDPOINT FIRST STEP [START]

Each time the directory is a new one, or a copy of START, which an earlier commit was downloaded to.

The process that dies is a fork, by SIGKILL to itself before its FIRST-th, FIRST+STEP-th, … line of the code that writes
to the disk: no exception, no ``finally``, no exit handler runs. One JSON list per kill: the line's number; the names
that were there; those of them that were neither as in START nor as they must be; the names that are there after the
next run, which must go through, and are as they must be; and the names of whatever is then left besides, or lacking.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import llamaconv.hub
from llamaconv.hub.settings import DownloadSettings
from llamaconv.tasks.download import download

HUB = Path(llamaconv.hub.__file__).parent
NAMES = ("beneath", "board", "folder", "folder_lock", "part", "records", "snapshot", "transfer", "unfinished")
WRITERS = {*(str(HUB / f"{name}.py") for name in NAMES), str(HUB.with_name("disk.py"))}


def forked(action: Callable[[], object]) -> int:
    """The exit status of ``action`` in a fork."""
    child = os.fork()
    if child == 0:
        action()
        os._exit(0)
    return os.waitpid(child, 0)[1]


def killed(action: Callable[[], object], lines: int) -> Callable[[], object]:
    """``action``, killed before its ``lines``-th line."""
    left = lines

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in WRITERS:
            return None
        left -= event == "line"
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    def run() -> None:
        threading.settrace(trace)
        sys.settrace(trace)
        action()

    return run


def names(folder: Path, *, ours: bool) -> list[str]:
    """Of the files that the repository has, or of those that downloads keep for themselves."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if name.startswith(".cache/") == ours)


def same(one: Path, other: Path) -> bool:
    """Whether there are two files with the same contents."""
    return one.exists() and other.exists() and one.read_bytes() == other.read_bytes()


def main(folder: Path, endpoint: str, line: int, step: int, start: Path | None = None) -> None:
    room, whole, start = folder / "room", folder / "whole", start or folder / "none"
    settings = DownloadSettings(endpoints=(endpoint,), token="", proxy="", offline=False, max_wait=0.01)
    if forked(lambda: download("org/m", whole, settings)):
        sys.exit("the download fails by itself")
    while True:
        shutil.rmtree(room, ignore_errors=True)
        if start.exists():
            shutil.copytree(start, room)
        if forked(killed(lambda: download("org/m", room, settings), line)) != signal.SIGKILL:
            break
        there = names(room, ours=False)
        wrong = [name for name in there if not any(same(room / name, right / name) for right in (start, whole))]
        if forked(lambda: download("org/m", room, settings)):
            sys.exit(f"line {line}: the next run fails")
        right = [name for name in names(room, ours=False) if same(room / name, whole / name)]
        odd = sorted({*names(room, ours=True), *names(room, ours=False)} ^ {*names(whole, ours=True), *right})
        print(json.dumps([line, there, wrong, right, odd]), flush=True)
        line += step


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), *map(Path, sys.argv[5:]))
