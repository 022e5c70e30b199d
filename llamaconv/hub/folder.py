"""The local directory of a download: what is in it, what is unfinished, and one process at a time."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from threading import Lock

from pydantic import TypeAdapter

from llamaconv.disk import sync_names, writing
from llamaconv.errors import OutputError
from llamaconv.hub.beneath import Tree, components
from llamaconv.hub.folder_lock import locked
from llamaconv.hub.repository import Algorithm, RemoteFile
from llamaconv.hub.stored_listing import Stored

__all__ = ["STATE", "Folder", "Standing"]

STATE = ".cache/llamaconv"
"""Folder in the local directory that is ours; no file of a repository may lie in it."""

_PART = "parts/{}.part"
_BLOCK = 1 << 20

logger = logging.getLogger(__name__)


class Standing(Enum):
    """What the local directory has under a file's name."""

    ABSENT = "absent"
    DONE = "done"
    """The file: its hash was right, and size and modification time are still what they were then."""
    UNKNOWN = "unknown"
    """A file of the right size, which must be hashed to know."""
    OTHER = "other"
    """Another file, which stays until the right one replaces it."""


@dataclass(frozen=True)
class _Record:
    """What a finished file was when its hash was right."""

    size: int
    mtime_ns: int
    algorithm: Algorithm
    hexdigest: str


_RECORD = TypeAdapter(_Record)


class Folder:
    """A local directory, locked. Several threads may use it, each for files of its own.

    Nothing below it is reached through a symbolic link: every method raises OutputError for one, or for something
    else in the way, and DiskFullError or OutputError, naming the path, for what the file system refuses.

    Args:
        tree: The directory.
        state: The folder in it that is ours.
    """

    def __init__(self, tree: Tree, state: Tree) -> None:
        self._tree = tree
        self._state = state
        self._part_folders = Lock()  # one thread must not remove the empty folder that another has just made

    @classmethod
    @contextmanager
    def open(cls, path: Path, *, wait: Callable[[str], None], cancelled: Callable[[], None]) -> Iterator[Folder]:
        """The directory at ``path``, made where it is missing, once no other process downloads into it.

        Args:
            path: May be a symbolic link.
            wait: Told once, in a sentence without its full stop, if another process must be waited for.
            cancelled: Called while waiting, several times a second; raises to give up.

        Raises:
            DiskFullError, OutputError: It cannot be made or written, or its file system has no locks.
        """
        with writing(path):
            tree = Tree.make(path)
        with closing(tree):
            with writing(path / STATE):
                state = tree.below(STATE, make=True)
            with closing(state), locked(state, path, wait, cancelled):
                with writing(state.path):
                    if state.status(".gitignore") is None:
                        state.write(".gitignore", b"*\n")
                yield cls(tree, state)

    @classmethod
    @contextmanager
    def look(cls, path: Path) -> Iterator[Folder]:
        """The directory at ``path``, there or not, to see what is in it: nothing is made, written or locked.

        Raises:
            OutputError: It is no directory, or cannot be read.
        """
        with writing(path):
            tree = Tree.look(path)
        with closing(tree), closing(tree.below(STATE, make=False)) as state:
            yield cls(tree, state)

    @property
    def path(self) -> Path:
        """As it was given."""
        return self._tree.path

    def free_bytes(self) -> int:
        """What may still be written to its file system."""
        with writing(self.path):
            return self._tree.free_bytes()

    def standing(self, file: RemoteFile) -> Standing:
        """What lies under the name of ``file``, as far as can be known without reading it."""
        with writing(self.path / file.name):
            found = self._tree.status(_checked(file.name))
        if found is None:
            return Standing.ABSENT
        if found.st_size != file.size:
            return Standing.OTHER
        record = self._recorded(file.name)
        if (
            record is None
            or (record.size, record.mtime_ns) != (found.st_size, found.st_mtime_ns)
            or record.algorithm != file.digest.algorithm
        ):
            return Standing.UNKNOWN
        return Standing.DONE if record.hexdigest == file.digest.hexdigest else Standing.OTHER

    def digest_of(self, file: RemoteFile, check: Callable[[int], None]) -> str:
        """The hash of what lies under the name of ``file``, in lower-case hexadecimal.

        Args:
            file: Says which kind of hash.
            check: Called after every MiB with the number of bytes so far; may raise to give up.
        """
        path = self.path / file.name
        with writing(path):
            descriptor = self._tree.open(_checked(file.name), os.O_RDONLY)
        try:
            hasher, block, done = file.digest.hasher(file.size), memoryview(bytearray(_BLOCK)), 0
            while True:
                with writing(path):
                    count = os.preadv(descriptor, [block], done)
                if count == 0:
                    return hasher.hexdigest()
                hasher.update(block[:count])
                done += count
                check(done)
        finally:
            os.close(descriptor)

    def record(self, file: RemoteFile) -> None:
        """Remember that what lies under the name of ``file`` now has its hash."""
        with writing(self.path / file.name):
            found = self._tree.status(_checked(file.name))
            if found is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        self._write_record(file, found)

    def forget(self, file: RemoteFile) -> None:
        """Take back what ``record`` or ``finish`` remembered."""
        name = _record_name(file.name)
        with writing(self._state.path / name):
            self._state.remove(name)

    def open_part(self, file: RemoteFile) -> int:
        """A descriptor to read and write the unfinished ``file``, made empty if there is none; the caller closes it."""
        name = _part_name(file.name)
        with writing(self._state.path / name), self._part_folders:
            return self._state.open(name, os.O_RDWR | os.O_CREAT, make=True)

    @contextmanager
    def read_part(self, file: RemoteFile) -> Iterator[int | None]:
        """A descriptor to read the unfinished ``file``; None if there is none."""
        name, descriptor = _part_name(file.name), None
        with writing(self._state.path / name), suppress(FileNotFoundError):
            descriptor = self._state.open(name, os.O_RDONLY)
        try:
            yield descriptor
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def drop_part(self, file: RemoteFile) -> None:
        """Throw away the unfinished ``file``, if there is one."""
        self._drop(_part_name(file.name))

    def finish(self, file: RemoteFile, descriptor: int) -> None:
        """Give the unfinished ``file`` its name, durably, over what lies there; and remember that its hash is right.

        Args:
            file: All of it was written, and its hash checked.
            descriptor: From ``open_part``; stays open.

        Raises:
            OutputError: Another program changed the unfinished file; or as all methods.
        """
        final, part = file.name, _part_name(file.name)
        with writing(self.path / final):
            os.fsync(descriptor)
            with self._state.parent(part) as (source, old), self._tree.parent(final, make=True) as (target, new):
                written = os.fstat(descriptor)
                self._require_same(part, written, file.size)
                self._tree.status(final)  # refuses what must not be replaced
                os.rename(old, new, src_dir_fd=source, dst_dir_fd=target)
                sync_names(target)
        self._write_record(file, written)
        with self._part_folders:
            self._state.prune(part)

    def read_listing(self) -> Stored | None:
        """What ``write_listing`` kept; None if that is missing or damaged."""
        path = self._state.path / "listing.json"
        with writing(path):
            data = self._state.read("listing.json")
        if data is None:
            return None
        try:
            return Stored.from_json(data)
        except ValueError as error:
            logger.info("%s is damaged and of no use: %s", path, error)
            return None

    def write_listing(self, stored: Stored) -> None:
        """Keep what was asked for and listed."""
        with writing(self._state.path / "listing.json"):
            self._state.write("listing.json", stored.to_json())

    def stale_parts(self, names: Collection[str]) -> list[str]:
        """Names of unfinished files that are not among ``names``, sorted."""
        with writing(self._state.path / "parts"):
            found = [name.removesuffix(".part") for name in self._state.files("parts") if name.endswith(".part")]
        return sorted(set(found).difference(names))

    def sweep(self, names: Collection[str]) -> list[str]:
        """Throw away the unfinished files that are not among ``names``; returns what they were to be."""
        stale = self.stale_parts(names)
        for name in stale:
            self._drop(_PART.format(name))
        return stale

    def _drop(self, part: str) -> None:
        with writing(self._state.path / part), self._part_folders:
            self._state.remove(part)
            self._state.prune(part)

    def _require_same(self, part: str, written: os.stat_result, size: int) -> None:
        found = self._state.status(part)
        if found is None or not os.path.samestat(found, written) or written.st_size != size:
            path = self._state.path / part
            raise OutputError(
                f"{path} was changed by another program.",
                hint="Let nothing else write there, then start again.",
                file=str(path),
            )

    def _recorded(self, name: str) -> _Record | None:
        # A cache: without it the file is hashed again.
        with suppress(OSError, OutputError, ValueError):
            return _RECORD.validate_json(self._state.read(_record_name(name)) or b"", strict=True)
        return None

    def _write_record(self, file: RemoteFile, found: os.stat_result) -> None:
        name, digest = _record_name(file.name), file.digest
        record = _Record(found.st_size, found.st_mtime_ns, digest.algorithm, digest.hexdigest)
        with writing(self._state.path / name):
            self._state.write(name, _RECORD.dump_json(record))


def _checked(name: str) -> str:
    folders = "/".join(components(name)[:2])
    if folders.casefold() == STATE:
        raise OutputError(f"{name} lies where downloads keep their own notes ({STATE}).", file=name)
    return name


def _part_name(name: str) -> str:
    return _PART.format(_checked(name))


def _record_name(name: str) -> str:
    return f"done/{_checked(name)}.json"
