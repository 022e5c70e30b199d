"""One writer per working directory: a lock file in it, held with flock for as long as the process lives."""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path

from llamaconv.errors import OutputError, OutputExistsError, OutputLockedError
from llamaconv.sinks.manifest import MANIFEST

__all__ = ["LOCK", "Lock", "claim", "take"]

LOCK = ".lock"


class Lock:
    """A held lock. It knows its directory by descriptor, so it stays with it through renames.

    Args:
        folder: Descriptor of the directory.
        file: Descriptor of the lock file in it.
    """

    def __init__(self, folder: int, file: int) -> None:
        self._folder = folder
        self._file = file

    def is_at(self, directory: Path) -> bool:
        """Whether ``directory`` is still the one that was locked, and the lock file still in it."""
        with suppress(FileNotFoundError):
            folder = os.path.samestat(os.fstat(self._folder), directory.stat(follow_symlinks=False))
            return folder and self._is_in_place()
        return False

    def acquire(self, directory: Path) -> None:
        """Take the lock or say who has it; ``directory`` is for the message.

        Raises:
            OutputLockedError: Another process holds it.
            OutputError: The file system has no locks.
        """
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._file, 32, 0).decode("ascii", "replace")
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
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, b"%d" % os.getpid(), 0)

    def remove(self) -> None:
        """Unlink the lock file, wherever its directory is by now; the lock is held on."""
        with suppress(FileNotFoundError):
            if self._is_in_place():
                os.unlink(LOCK, dir_fd=self._folder)

    def release(self) -> None:
        """Give the lock up."""
        os.close(self._file)
        os.close(self._folder)

    def _is_in_place(self) -> bool:
        there = os.stat(LOCK, dir_fd=self._folder, follow_symlinks=False)
        return os.path.samestat(os.fstat(self._file), there)


def claim(directory: Path) -> Lock:
    """Take the lock of a working directory, which is made if it is missing. Dying gives it up too.

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
            lock = take(directory)
            if lock is not None:
                return lock


def take(directory: Path) -> Lock | None:
    """Take the lock of a directory that is there; None if it was renamed or removed in the meantime.

    Raises:
        OutputLockedError: Another process holds it.
        OutputError: The file system has no locks.
        OSError: The directory is gone or cannot be written.
    """
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        lock = Lock(folder, os.open(LOCK, flags, 0o666, dir_fd=folder))
    except BaseException:
        os.close(folder)
        raise
    try:
        lock.acquire(directory)
        if lock.is_at(directory):
            return lock
        lock.remove()  # made by us in a directory that was published in between
    except BaseException:
        lock.release()
        raise
    lock.release()
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
