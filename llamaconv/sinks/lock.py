"""One writer per working directory: a lock file in it, held with flock for as long as the process lives."""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path

from llamaconv.errors import OutputError, OutputExistsError, OutputLockedError
from llamaconv.sinks.manifest import MANIFEST

__all__ = ["LOCK", "claim", "take"]

LOCK = ".lock"


def claim(directory: Path) -> int:
    """Take the lock of a working directory, which is made if it is missing.

    Returns:
        The descriptor that holds the lock; closing it, or dying, gives it up.

    Raises:
        OutputLockedError: Another process holds it.
        OutputExistsError: Something of that name was left by no run of ours, so nobody may clear it.
        OutputError: The file system has no locks.
        OSError: The directory cannot be made or written.
    """
    while True:
        with suppress(FileExistsError):
            directory.mkdir()
        # Its last holder may rename or remove it at any moment until we hold the lock: then start over.
        with suppress(FileNotFoundError):
            _require_ours(directory)
            descriptor = take(directory)
            if descriptor is not None:
                return descriptor


def take(directory: Path) -> int | None:
    """Take the lock of a directory that is there; None if it was renamed or removed in the meantime.

    Raises:
        OutputLockedError: Another process holds it.
        OutputError: The file system has no locks.
        OSError: The directory is gone or cannot be written.
    """
    path = directory / LOCK
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        _lock(descriptor, directory)
        if os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False)):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, b"%d" % os.getpid(), 0)
            return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _require_ours(directory: Path) -> None:
    if not directory.is_symlink() and (directory.is_dir() or not directory.exists()):
        names = os.listdir(directory)
        if not names or LOCK in names or MANIFEST in names:
            return
    raise OutputExistsError(
        f"{directory} is in the way: no unfinished run left it.",
        hint="Move it away, or choose another output.",
        file=str(directory),
    )


def _lock(descriptor: int, directory: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace")
        raise OutputLockedError(
            f"{directory} is being written by another process ({holder or 'of unknown number'}).",
            hint="Wait for it to finish, or choose another output.",
            file=str(directory),
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        raise OutputError(
            f"{directory}: the file system has no locks ({error.strerror}).",
            hint="Write to a local disk and copy the result.",
            file=str(directory),
        ) from error
