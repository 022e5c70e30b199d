"""Put a finished directory where another one may be."""

from __future__ import annotations

import ctypes
import errno
import os
import re
from collections.abc import Callable
from pathlib import Path

from llamaconv.disk import sync_directory

__all__ = ["aside_of", "exchange", "is_mount_point", "move", "replace"]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_UNSUPPORTED = frozenset({errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EXDEV})


def exchange(one: Path, other: Path) -> bool:
    """Swap two paths in one step (renameat2, Linux 3.15); False where system or file system cannot.

    Raises:
        OSError: It can, but refuses.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    if renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], ctypes.c_uint(_RENAME_EXCHANGE)) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(other))


def aside_of(out: Path) -> Path:
    """Where ``replace`` puts ``out`` for the moment where it cannot be exchanged."""
    return out.with_name(out.name + ".replaced")


def replace(new: Path, out: Path, *, exchange: Callable[[Path, Path], bool] = exchange) -> Path | None:
    """Rename the directory ``new`` to ``out``, whatever directory ``out`` may be; durable on return.

    With ``exchange`` there is no moment without ``out``; otherwise the old one is renamed away first, and
    back again if the new one cannot take its place.

    Returns:
        Where the old directory lies now, for the caller to remove; None if ``out`` was absent or empty.

    Raises:
        OSError: Refused, and ``out`` is what it was.
    """
    try:
        move(new, out)
        return None
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    if exchange(new, out):
        sync_directory(out.parent)
        return new
    old = aside_of(out)
    os.rename(out, old)
    try:
        move(new, out)
    except OSError:
        os.rename(old, out)
        raise
    return old


def move(new: Path, out: Path) -> None:
    """Rename the directory ``new`` to ``out``, which must be absent or an empty directory; durable on return.

    Raises:
        OSError: Refused, for instance because ``out`` holds something.
    """
    os.rename(new, out)
    sync_directory(out.parent)


def is_mount_point(path: Path) -> bool:
    """Whether another file system, or another part of this one (a bind mount), is mounted on ``path``."""
    if os.path.ismount(path):
        return True
    mounts = Path("/proc/self/mountinfo")  # only there does Linux tell of a bind mount within a file system
    if not mounts.is_file():
        return False
    wanted = os.fsencode(path.resolve())
    lines = mounts.read_bytes().splitlines()
    return any(_unescaped(line.split(b" ")[4]) == wanted for line in lines)


def _unescaped(field: bytes) -> bytes:
    """proc(5): space, tab, newline and backslash are written as three octal digits."""
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field)
