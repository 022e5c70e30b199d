"""What an interrupted command left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from llamaconv.sinks.manifest import MANIFEST

__all__ = ["remains"]


def remains(out: Path) -> Callable[[], str]:
    """What to say of ``out`` after an interruption: its manifest is new if it was published before that."""
    before = _manifest_inode(out)

    def explain() -> str:
        if _manifest_inode(out) != before:
            return f"{out} is complete."
        places = (Path(f"{out}.partial"), out / ".partial", Path(f"{out}.gptq"), Path(f"{out}.gptq.partial"))
        unfinished = [path for path in places if path.exists()]
        left = "".join(f" Unfinished work is in {path}." for path in unfinished)
        return f"{out} is as it was before.{left}"

    return explain


def _manifest_inode(out: Path) -> int | None:
    try:
        return (out / MANIFEST).stat().st_ino
    except OSError:
        return None
