"""Files below a directory that is held by descriptor, reached folder by folder and never through a symbolic link."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from llamaconv.disk import make_parents, sync_names, write_at
from llamaconv.errors import OutputError

__all__ = ["Tree", "components"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_LONGEST_READ = 1 << 28
_MOVE = "Move it away, or choose another directory."


class Tree:
    """An open directory, and what lies below it. Names are relative to it, with slashes.

    What was checked is what is used, whoever renames or links things meanwhile. All methods raise OutputError for a
    symbolic link or something of the wrong kind on the way or in place of the file, and OSError for what the file
    system refuses.

    Args:
        path: For messages.
        descriptor: Of the directory, or of one that it lies in; ``close`` closes it.
        way: From there to the directory; these folders need not be there yet.
    """

    def __init__(self, path: Path, descriptor: int, way: tuple[str, ...] = ()) -> None:
        self.path = path
        self._descriptor = descriptor
        self._way = way

    @classmethod
    def make(cls, path: Path) -> Tree:
        """The directory at ``path``, through symbolic links where there are some; made where it is missing.

        Raises:
            PermissionError: It may not be written.
        """
        try:
            make_parents(path)
        except NotADirectoryError as error:
            raise _no_directory(Path(error.filename)) from error
        tree = cls(path, os.open(path, _DIRECTORY))
        try:
            tree._require_writable()
        except BaseException:
            tree.close()
            raise
        return tree

    @classmethod
    def look(cls, path: Path) -> Tree:
        """The directory at ``path``, there or not."""
        there, way = path, []
        while not there.is_dir():
            if os.path.lexists(there):
                raise _no_directory(there)
            way.append(there.name)
            there = there.parent
        return cls(path, os.open(there, _DIRECTORY), tuple(reversed(way)))

    def below(self, name: str, *, make: bool) -> Tree:
        """The folder ``name``; ``make`` makes it where it is missing."""
        if not make:
            return Tree(self.path / name, os.dup(self._descriptor), (*self._way, *components(name)))
        with self._folder(components(name), make) as folder:
            return Tree(self.path / name, os.dup(folder))

    def close(self) -> None:
        os.close(self._descriptor)

    def _require_writable(self) -> None:
        if not os.access(".", os.W_OK | os.X_OK, dir_fd=self._descriptor, effective_ids=True):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self.path))

    def free_bytes(self) -> int:
        """What this process may still write to the file system."""
        space = os.fstatvfs(self._descriptor)
        return space.f_bavail * space.f_frsize

    @contextmanager
    def parent(self, name: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        """The descriptor of the folder that ``name`` lies in, which ``make`` makes, and the last part of the name."""
        *folders, last = components(name)
        with self._folder(folders, make) as folder:
            yield folder, last

    @contextmanager
    def _folder(self, names: Iterable[str], make: bool) -> Iterator[int]:
        with ExitStack() as opened:
            descriptor = self._descriptor
            path = self.path.parents[len(self._way) - 1] if self._way else self.path
            for name in (*self._way, *names):
                path = path / name
                descriptor = _enter(descriptor, path, make)
                opened.callback(os.close, descriptor)
            yield descriptor

    def status(self, name: str) -> os.stat_result | None:
        """Of the regular file ``name``; None if there is nothing of that name."""
        with suppress(FileNotFoundError), self.parent(name) as (folder, last):
            found = os.stat(last, dir_fd=folder, follow_symlinks=False)
            if not stat.S_ISREG(found.st_mode):
                raise _obstacle(self.path / name, found)
            return found
        return None

    def open(self, name: str, flags: int, *, make: bool = False) -> int:
        """A descriptor of the regular file ``name``; ``make`` makes the folders that it lies in."""
        with self.parent(name, make=make) as (folder, last):
            # A pipe must not keep us waiting.
            safe = flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            try:
                descriptor = os.open(last, safe, 0o666, dir_fd=folder)
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                    raise
                found = os.stat(last, dir_fd=folder, follow_symlinks=False)
                raise _obstacle(self.path / name, found) from error
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode):
            return descriptor
        os.close(descriptor)
        raise _obstacle(self.path / name, found)

    def read(self, name: str) -> bytes | None:
        """The contents of a small file; None if there is none."""
        with suppress(FileNotFoundError), open(self.open(name, os.O_RDONLY), "rb") as file:
            return file.read(_LONGEST_READ)
        return None

    def write(self, name: str, data: bytes) -> None:
        """Put a file with these contents in place, all at once and durably; its folders are made."""
        with self.parent(name, make=True) as (folder, last):
            fresh = (
                f"{os.path.splitext(last)[0]}.new"  # not longer than ``last``, which may be as long as a name can be
            )
            with suppress(FileNotFoundError):
                os.unlink(fresh, dir_fd=folder)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(fresh, flags, 0o666, dir_fd=folder)
            try:
                write_at(descriptor, data, 0)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.rename(fresh, last, src_dir_fd=folder, dst_dir_fd=folder)
            sync_names(folder)

    def remove(self, name: str) -> None:
        """Unlink a file if it is there, a symbolic link and not what it leads to."""
        with suppress(FileNotFoundError), self.parent(name) as (folder, last):
            os.unlink(last, dir_fd=folder)

    def prune(self, name: str) -> None:
        """Remove the folders that ``name`` lies in, up to the first that is not empty."""
        with suppress(OSError):
            while "/" in name:
                name = name.rpartition("/")[0]
                with self.parent(name) as (folder, last):
                    os.rmdir(last, dir_fd=folder)

    def top(self) -> list[str]:
        """Names of what lies directly in it, sorted; none if it is not there."""
        with suppress(FileNotFoundError), self._folder((), make=False) as folder:
            return sorted(os.listdir(folder))
        return []

    def files(self, name: str) -> Iterator[str]:
        """Names of all that lies in the folder ``name`` and below it and is no folder, relative to that folder."""
        with suppress(FileNotFoundError), self._folder(name.split("/"), make=False) as folder:
            for path, _, names, _ in os.fwalk(".", dir_fd=folder, onerror=_give_up):
                yield from (os.path.normpath(os.path.join(path, last)) for last in names)


def components(name: str) -> list[str]:
    """The folders that the file ``name`` lies in, outermost first, and the last part of its name.

    Raises:
        OutputError: It would lie elsewhere than below the directory, or nowhere.
    """
    found = name.split("/")
    if "\0" in name or not {"", ".", ".."}.isdisjoint(found):
        raise OutputError(f"{name!r} is no name of a file below the directory.", file=name)
    return found


def _enter(parent: int, path: Path, make: bool) -> int:
    if make:
        with suppress(FileExistsError):
            os.mkdir(path.name, dir_fd=parent)
            sync_names(parent)
    try:
        return os.open(path.name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise
        raise _obstacle(path, os.stat(path.name, dir_fd=parent, follow_symlinks=False)) from error


def _no_directory(path: Path) -> OutputError:
    return OutputError(f"{path} is in the way: it is not a directory.", hint=_MOVE, file=str(path))


def _obstacle(path: Path, found: os.stat_result) -> OutputError:
    if stat.S_ISLNK(found.st_mode):
        fault, hint = "is a symbolic link: nothing is written through it", "Remove it, or choose another directory."
    else:
        kind = {stat.S_IFDIR: "a directory", stat.S_IFREG: "a file"}.get(stat.S_IFMT(found.st_mode), "a special file")
        fault, hint = f"is in the way: it is {kind}", _MOVE
    return OutputError(f"{path} {fault}.", hint=hint, file=str(path))


def _give_up(error: OSError) -> None:
    raise error
