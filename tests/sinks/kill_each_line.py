"""Publish again and again, each time killed one line of our code later, and print what was found each time.

Usage: kill_each_line.py FOLDER tensors|fresh|overwrite|volume|here|renames

The process that dies is a fork, by SIGKILL to itself: no exception, no ``finally``, no exit handler runs. One
JSON list per kill: the line's number; what OUT was ("absent", "unmarked", "old", "new", or else its files);
whether the next run went through and left nothing else behind.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import llamaconv.sinks
from llamaconv.disk import clear
from llamaconv.sinks.manifest import write_json
from llamaconv.sinks.publish import Publication
from llamaconv.sinks.rename import aside_of, replace

SINKS = Path(llamaconv.sinks.__file__).parent
NAMES = ("checkpoint", "in_place", "safetensors", "sealing", "skeleton", "torch_zip")
OURS = (str(SINKS), str(SINKS.with_name("disk.py")))
WRITERS = {str(SINKS / f"{name}.py") for name in NAMES}


def write(out: Path, text: str, overwrite: bool, tensors: bool = False) -> None:
    """Publish an output; ``text`` tells one version from another."""
    with Publication(out, overwrite, 1) as publication:
        fill = fill_with_tensors if tensors else fill_with_files
        fill(publication.directory, text)
        publication.commit({"version": text})


def fill_with_files(directory: Path, text: str) -> None:
    """One file and one folder with another."""
    (directory / "config.json").write_text(text)
    (directory / "deep").mkdir()
    write_json(directory / "deep" / "weights", text * 1000)


def fill_with_tensors(directory: Path, text: str) -> None:
    """Two shards and an index, and a torch file in a folder."""
    import torch  # a fork is four times as fast without it

    from llamaconv.sinks.checkpoint import CheckpointWriter
    from llamaconv.sinks.sharding import Shard, shard
    from llamaconv.tensors import TensorSpec

    a, b, c = (TensorSpec(name, (3, 2), torch.int8) for name in "abc")
    writer = CheckpointWriter(directory, [*shard([a, b], max_bytes=6), Shard("deep/c.pth", (c,))])
    for name in "bca":
        writer.write(name, torch.full((3, 2), len(text), dtype=torch.int8))
    (directory / "digests").write_text(str(writer.finish()))


def content(folder: Path) -> dict[str, bytes]:
    """What a folder holds, without the lock and the working folder of a run that was killed."""
    paths = (path for path in folder.rglob("*") if path.is_file() and ".partial" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths if path.name != ".lock"}


def killed(action: Callable[[], object], lines: int) -> bool:
    """Run ``action`` in a fork that kills itself before its ``lines``-th line of our code; False if it ended.

    What the writer of tensors does in the working folder is counted by function, all else by line.
    """
    child = os.fork()
    if child == 0:
        left = lines

        def trace(frame: FrameType, event: str, argument: object) -> Any:
            nonlocal left
            if not frame.f_code.co_filename.startswith(OURS):
                return None
            left -= event == ("call" if frame.f_code.co_filename in WRITERS else "line")
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return trace

        threading.settrace(trace)
        sys.settrace(trace)
        action()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status not in (0, signal.SIGKILL):
        sys.exit(f"line {lines}: the run failed by itself ({status})")
    return status != 0


def state(out: Path, versions: dict[str, dict[str, bytes]]) -> object:
    found = content(out)
    for name, version in versions.items():
        if found == version:
            return name
    return "absent" if not out.exists() else sorted(found) if "llamaconv.json" in found else "unmarked"


def main(folder: Path, mode: str) -> None:
    room = folder / "room"
    out, new = room / "out", room / "new"
    versions = {}
    for name in ("old", "new"):
        write(folder / name, name, overwrite=False, tensors=mode == "tensors")
        versions[name] = content(folder / name)
    out.mkdir(parents=True, exist_ok=True)  # a volume is mounted there
    if mode == "here":
        os.chdir(out)
    replacing = mode in ("overwrite", "volume", "renames")
    line = 1
    while True:
        if mode in ("fresh", "tensors"):
            clear(room)
        elif mode == "here":
            clear(out)
        else:
            write(out, "old", overwrite=True)
        action: Callable[[], object] = lambda: write(out, "new", replacing, mode == "tensors")  # noqa: E731
        if mode == "renames":
            write(new, "new", overwrite=True)
            action = lambda: replace(new, out, exchange=lambda one, other: False)  # noqa: E731
        if not killed(action, line):
            break
        found = state(out, versions)
        if mode == "renames":  # nothing is lost: each version is in one of the places
            places = [state(place, versions) for place in (new, out, aside_of(out))]
            clean = sorted(map(str, places)) == ["absent", "new", "old"]
            clear(room)
        else:
            if mode == "here":
                clear(out)
            write(out, "new", overwrite=mode != "here", tensors=mode == "tensors")
            clean = sorted(os.listdir(room)) == ["out"] and state(out, versions) == "new"
            clean = clean and not {".lock", ".partial"} & set(os.listdir(out))
        print(json.dumps([line, found, clean]), flush=True)
        line += 1
    assert state(out, versions) == "new"


if __name__ == "__main__":
    # Python 3.12 warns of forking with torch's threads around; they idle, and the fork uses none.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    main(Path(sys.argv[1]).resolve(), sys.argv[2])
