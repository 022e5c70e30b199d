"""What all that write need of the disk: errors in our own classes, space, durability, removal that stays inside."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llamaconv.errors import DiskFullError, OutputError

__all__ = [
    "MOST_PER_CALL",
    "clear",
    "make_parents",
    "remove_empty",
    "reserve",
    "sync_directory",
    "sync_names",
    "sync_tree",
    "write_at",
    "write_text",
    "writing",
]

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
MOST_PER_CALL = 1 << 30
"""Linux moves at most 0x7ffff000 bytes in a call and macOS refuses more than it."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within it, an OSError becomes the OutputError that it means for ``path``.

    Raises:
        DiskFullError: No space or quota left.
        OutputError: Anything else that the file system refuses.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DiskFullError(
                f"{path}: {error.strerror}.", hint="Free some space or write elsewhere.", file=str(path)
            ) from error
        hint = None
        if error.errno == errno.EFBIG:
            hint = "Files may not be so large here: write elsewhere, raise `ulimit -f`, or make smaller shards."
        raise OutputError(f"{path}: {error.strerror}.", hint=hint, file=str(path)) from error


def reserve(descriptor: int, size: int) -> None:
    """Give the file its size, with real blocks where the file system can, so that a full disk shows now.

    Raises:
        OSError: There is no such space, or the file system has no files of that size.
    """
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
    os.ftruncate(descriptor, size)


def write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of ``data`` from byte ``offset`` of the file on.

    Raises:
        OSError: The file system refuses.
    """
    view, done = memoryview(data), 0
    while done < len(view):
        done += os.pwrite(descriptor, view[done : done + MOST_PER_CALL], offset + done)


def write_text(path: Path, text: str) -> None:
    """Write a file of UTF-8 text, and make it durable.

    Raises:
        OSError: The file system refuses.
    """
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable.

    Raises:
        OSError: The device failed.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync_names(descriptor)
    finally:
        os.close(descriptor)


def sync_names(descriptor: int) -> None:
    """Make the names in an open directory durable.

    Raises:
        OSError: The device failed.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # file systems without a notion of syncing a directory
            raise


def sync_tree(root: Path) -> None:
    """Make all files and names below ``root`` durable; symbolic links are not followed.

    Raises:
        OSError: The device failed.
    """
    for folder, _, names in os.walk(root, topdown=False):
        for name in names:
            path = Path(folder, name)
            if not path.is_symlink():
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
        sync_directory(Path(folder))


def clear(directory: Path, keep: Iterable[str] = ()) -> None:
    """Remove what is in a directory, except the names in ``keep``; symbolic links go, not what they lead to.

    Raises:
        OSError: Something cannot be removed.
    """
    kept = frozenset(keep)
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name in kept:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)


def make_parents(directory: Path) -> list[Path]:
    """Create ``directory`` and what it lies in, as far as missing; returns what was created, innermost first.

    Raises:
        OSError: It cannot be created, or a file is in the way; nothing is left behind.
    """
    missing = []
    while not directory.is_dir():
        if os.path.lexists(directory):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(directory))
        missing.append(directory)
        directory = directory.parent
    try:
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
    except OSError:
        remove_empty(missing)
        raise
    return missing


def remove_empty(directories: Iterable[Path]) -> None:
    """Remove directories in the given order, up to the first that is not there or not empty (any more)."""
    with suppress(OSError):
        for path in directories:
            path.rmdir()
