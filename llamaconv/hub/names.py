"""Which file names of a Hub may be used on disk."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from llamaconv.errors import HubError
from llamaconv.json_files import shown

__all__ = ["faults", "hostile", "require_safe", "unsafe", "unusable"]

_LONGEST_PART = 255  # bytes: NAME_MAX of Linux's file systems
_LONGEST_NAME = 4096  # bytes: PATH_MAX
_MOST_SHOWN = 10
_DRIVE = re.compile("[A-Za-z]:")
_SURROGATE = re.compile("[\ud800-\udfff]")


def unsafe(name: str) -> str | None:
    """Why ``name``, a path with slashes, may not be used on disk, as a phrase that follows it; None if it may."""
    return hostile(name) or unusable(name)


def hostile(name: str) -> str | None:
    """Why ``name`` does not come from a decent repository, as a phrase that follows it; None if it may.

    That is what leads out of the directory on any system or names no file on any, what would reach a terminal as an
    escape sequence, and what lies where git's files or our own do, also on file systems that fold case or leave out
    characters without a width.
    """
    if not name:
        return "is empty"
    if _SURROGATE.search(name):
        return "is not valid Unicode"
    return _bad_character(name) or _bad_place(name) or _bad_part(name.split("/"))


def unusable(name: str) -> str | None:
    """Why no file here can be called ``name``, though it does no harm, as a phrase that follows it; None if one can."""
    if "\\" in name:
        return "holds a backslash"
    parts = [len(part.encode("utf-8", "surrogatepass")) for part in name.split("/")]
    if sum(parts) + len(parts) - 1 > _LONGEST_NAME:
        return f"is longer than {_LONGEST_NAME} bytes"
    if max(parts) > _LONGEST_PART:
        return f"has a part longer than {_LONGEST_PART} bytes"
    return None


def _bad_character(name: str) -> str | None:
    if "\0" in name:
        return "holds a NUL"
    if any(unicodedata.category(character) == "Cc" for character in name):
        return "holds a control character"
    return None


def _bad_place(name: str) -> str | None:
    if name.startswith("/"):
        return "is absolute"
    if _DRIVE.match(name):
        return "names a drive"
    return None


def _bad_part(parts: Sequence[str]) -> str | None:
    if "" in parts:
        return "has an empty part"
    if "." in parts:
        return "has a part '.'"
    if any(".." in part.split("\\") for part in parts):
        return "has '..' in it"
    folded = [_folded(part) for part in parts]
    if folded == [".cache"] or folded[:2] == [".cache", "llamaconv"]:
        return "is ours"
    if ".git" in folded:
        return "is git's"
    return None


def _folded(part: str) -> str:
    """``part`` as a file system compares it that folds case and skips what has no width (ext4's casefold, HFS+)."""
    kept = "".join(character for character in part if unicodedata.category(character) != "Cf")
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", kept).casefold())


def faults(names: Iterable[str], judged: Callable[[str], str | None] = unsafe) -> list[str]:
    """What keeps ``names`` from being the files of one directory, a phrase each ('"a/../b" has '..' in it').

    Args:
        names: Paths with slashes.
        judged: Why not one of them, None if there is no reason.
    """
    counts = Counter(iter(names))  # of a mapping the keys
    ordered = sorted(counts)
    found = []
    for name, count in counts.items():
        if reason := judged(name):
            found.append(f"{shown(name)} {reason}")
        elif count > 1:
            found.append(f"{shown(name)} stands there {count} times")
        elif _is_folder(name, ordered):
            found.append(f"{shown(name)} is a file and a folder")
    return found


def _is_folder(name: str, ordered: Sequence[str]) -> bool:
    position = bisect_left(ordered, f"{name}/")
    return position < len(ordered) and ordered[position].startswith(f"{name}/")


def require_safe(names: Iterable[str], repository: str) -> None:
    """Raise before anything is written that should not be. Names that are only unusable pass.

    Raises:
        HubError: Names that are hostile, that are there twice, or that are both a file and a folder; the first ten of
            them.
    """
    found = faults(names, hostile)
    if not found:
        return
    lines = [f"{repository}: the file name {fault}." for fault in found[:_MOST_SHOWN]]
    if len(found) > _MOST_SHOWN:
        lines.append(f"… and {len(found) - _MOST_SHOWN} more.")
    hint = "Nothing was written: such names are a fault of the repository or of the server, or an attack."
    raise HubError("\n".join(lines), hint=hint, repository=repository)
