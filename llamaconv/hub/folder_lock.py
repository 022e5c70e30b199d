"""One process per local directory: the second waits."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import lock_descriptor

from llamaconv.disk import writing
from llamaconv.errors import OutputError
from llamaconv.hub.beneath import Tree

__all__ = ["locked"]

_PAUSE = 0.2  # seconds between two attempts


@contextmanager
def locked(state: Tree, directory: Path, wait: Callable[[str], None], cancelled: Callable[[], None]) -> Iterator[None]:
    """Within it, no other process is; one that dies gives the lock up too.

    Args:
        state: Where the lock file lies. It stays there, with the number of the process that had it last.
        directory: For messages: what is locked.
        wait: Told once, in a sentence without its full stop, if another process must be waited for.
        cancelled: Called while waiting, several times a second; raises to give up.

    Raises:
        DiskFullError, OutputError: The lock file cannot be written, or was removed, or the file system has no locks.
    """
    path = state.path / "lock"
    with writing(path):
        lock = state.open("lock", os.O_RDWR | os.O_CREAT)
    try:
        waiting = False
        while not _taken(lock, directory):
            if not waiting:
                waiting = True
                wait(f"{directory} is being downloaded into by another process ({_holder(lock)}); waiting")
            cancelled()
            time.sleep(_PAUSE)
        with writing(path):
            if os.fstat(lock).st_nlink == 0:  # another process may have made and locked a new one
                raise OutputError(f"{path} was removed by another program.", hint="Start again.", file=str(path))
            os.ftruncate(lock, 0)
            os.pwrite(lock, b"%d" % os.getpid(), 0)
        yield
    finally:
        os.close(lock)


def _taken(lock: int, directory: Path) -> bool:
    try:
        return lock_descriptor(lock, blocking=False)
    except OSError as error:
        raise OutputError(
            f"{directory}: the file system has no locks ({error.strerror}).",
            hint="Download to a local disk and copy the result.",
            file=str(directory),
        ) from error


def _holder(lock: int) -> str:
    number = os.pread(lock, 32, 0)
    return number.decode("ascii") if number.isdigit() else "of unknown number"
