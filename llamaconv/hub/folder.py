"""The local directory of a download: what is in it, what is unfinished, and one process at a time."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from llamaconv.disk import sync_names, writing
from llamaconv.errors import OutputError
from llamaconv.hub.beneath import Tree
from llamaconv.hub.entries import STATE, checked
from llamaconv.hub.folder_lock import locked
from llamaconv.hub.records import Delivery, Records
from llamaconv.hub.repository import RemoteFile
from llamaconv.hub.stored_listing import Stored
from llamaconv.hub.unfinished import Parts

__all__ = ["STATE", "Folder", "Hashed", "Standing"]

_BLOCK = 1 << 20

logger = logging.getLogger(__name__)


class Standing(Enum):
    """What the local directory has under a file's name."""

    ABSENT = "absent"
    DONE = "done"
    """The file: its hash was right, and size and modification time are still what they were then."""
    UNKNOWN = "unknown"
    """A file of the right size, which must be hashed to know."""
    OUTDATED = "outdated"
    """A file that an earlier download from the same repository brought, unchanged since: the right one replaces it."""
    OTHER = "other"
    """Another file, which stays until the right one replaces it."""


class Hashed(NamedTuple):
    """A file that did not change while it was hashed.

    Attributes:
        hexdigest: In lower case.
        status: Of what was hashed, whatever lies there now.
    """

    hexdigest: str
    status: os.stat_result


class Folder:
    """A local directory, locked. Several threads may use it, each for files of its own.

    Nothing below it is reached through a symbolic link: every method raises OutputError for one, or for something
    else in the way, and DiskFullError or OutputError, naming the path, for what the file system refuses.

    Args:
        tree: The directory.
        state: The folder in it that is ours.
        repository: That the download is of, ``org/name``.
    """

    def __init__(self, tree: Tree, state: Tree, repository: str) -> None:
        self.repository = repository
        self._tree = tree
        self._state = state
        self._records = Records(state)
        self._parts = Parts(state, repository)

    @classmethod
    @contextmanager
    def open(
        cls, path: Path, repository: str, *, wait: Callable[[str], None], cancelled: Callable[[], None]
    ) -> Iterator[Folder]:
        """The directory at ``path``, made where it is missing, once no other process downloads into it.

        Args:
            path: May be a symbolic link.
            repository: That is downloaded.
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
                yield cls(tree, state, repository)

    @classmethod
    @contextmanager
    def look(cls, path: Path, repository: str) -> Iterator[Folder]:
        """The directory at ``path``, there or not, to see what is in it: nothing is made, written or locked.

        Raises:
            OutputError: It is no directory, or cannot be read.
        """
        with writing(path):
            tree = Tree.look(path)
        with closing(tree), closing(tree.below(STATE, make=False)) as state:
            yield cls(tree, state, repository)

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
        found = self._status(file.name)
        if found is None:
            return Standing.ABSENT
        known = self._records.delivery(file.name, found)
        if found.st_size == file.size:
            if known is None or known.digest.algorithm != file.digest.algorithm:
                return Standing.UNKNOWN
            if known.digest == file.digest:
                return Standing.DONE
        return Standing.OUTDATED if known is not None and known.repository == self.repository else Standing.OTHER

    def digest_of(self, file: RemoteFile, check: Callable[[int], None]) -> Hashed | None:
        """The hash of what lies under the name of ``file``; None if that was changed meanwhile.

        Args:
            file: Says which kind of hash.
            check: Called after every MiB with the number of bytes so far; may raise to give up.
        """
        path = self.path / file.name
        with writing(path):
            descriptor = self._tree.open(checked(file.name), os.O_RDONLY)
        try:
            before = os.fstat(descriptor)
            hasher, block, done = file.digest.hasher(file.size), memoryview(bytearray(_BLOCK)), 0
            while True:
                with writing(path):
                    count = os.preadv(descriptor, [block], done)
                if count == 0:
                    return Hashed(hasher.hexdigest(), before) if _same(before, os.fstat(descriptor)) else None
                hasher.update(block[:count])
                done += count
                check(done)
        finally:
            os.close(descriptor)

    def record(self, file: RemoteFile, hashed: os.stat_result) -> None:
        """Remember that the file that was ``hashed`` has the hash of ``file``; who brought it stays as it was."""
        known = self._records.last(file.name)
        brought = known if known and (known.digest == file.digest or known.describes(hashed)) else None
        owner = brought.repository if brought else ""
        self._records.write(file.name, _delivery(file, hashed, owner))

    def forget(self, file: RemoteFile) -> None:
        """Take back what ``record`` or ``finish`` remembered."""
        self._records.remove(file.name)

    def share(self, file: RemoteFile) -> None:
        """Told of a file that is there already: if it came from another repository, none may remove it any more."""
        known = self._records.last(file.name)
        if known is not None and known.repository not in ("", self.repository):
            self._records.write(file.name, replace(known, repository=""))

    def open_part(self, file: RemoteFile) -> int:
        """A descriptor to read and write the unfinished ``file``, made empty if there is none; the caller closes it."""
        return self._parts.open(file.name)

    def read_part(self, file: RemoteFile) -> AbstractContextManager[int | None]:
        """A descriptor to read the unfinished ``file``; None if there is none."""
        return self._parts.reading(file.name)

    def drop_part(self, file: RemoteFile) -> None:
        """Throw away the unfinished ``file``, if there is one."""
        self._parts.drop(file.name)

    def finish(self, file: RemoteFile, descriptor: int) -> None:
        """Give the unfinished ``file`` its name, durably, over what lies there; and remember that its hash is right.

        Args:
            file: All of it was written, and its hash checked.
            descriptor: From ``open_part``; stays open.

        Raises:
            OutputError: Another program changed the unfinished file; or as all methods.
        """
        part = self._parts.place(file.name)
        with writing(self.path / file.name):
            os.fsync(descriptor)
            with self._state.parent(part) as (source, old), self._tree.parent(file.name, make=True) as (target, new):
                written = os.fstat(descriptor)
                self._parts.require_same(file.name, written, file.size)
                before = self._tree.status(file.name)  # refuses what must not be replaced
                replaced = before and self._records.delivery(file.name, before)
                self._records.write(file.name, _delivery(file, written, self.repository), replaced)
                os.rename(old, new, src_dir_fd=source, dst_dir_fd=target)
                sync_names(target)
        self._parts.prune(file.name)

    def outdated(self, files: Iterable[RemoteFile]) -> list[str]:
        """Names of what earlier downloads from the repository brought, unchanged since, and none of ``files`` is."""
        present = {file.name: file.digest for file in files}
        return [
            name
            for name, known in ((name, self._brought(name)) for name in self._records.names())
            if known is not None and known.repository == self.repository and known.digest != present.get(name)
        ]

    def clear_out(self, files: Iterable[RemoteFile], among: Callable[[str], bool] = lambda name: True) -> list[str]:
        """Remove what is ``outdated`` among certain names, and the records of what is not there any more.

        Returns:
            The names. What cannot be removed stays, with a note.
        """
        removed = []
        for name in filter(among, self.outdated(files)):
            try:
                with writing(self.path / name):
                    self._tree.remove(name)
                    self._tree.prune(name)
            except OutputError as error:
                logger.warning("%s It is of another commit and was to be removed.", error.message)
            else:
                removed.append(name)
        for name in self._records.names():
            with suppress(OutputError):  # what somebody put in its place stays
                if self._status(name) is None:
                    self._records.remove(name)
        return removed

    def top(self) -> list[str]:
        """Names of what lies in the directory itself, sorted."""
        with writing(self.path):
            return self._tree.top()

    def sweep(self, files: Iterable[RemoteFile]) -> list[tuple[str, int]]:
        """Throw away the repository's unfinished files that are none of ``files``; returns their names and bytes."""
        return self._parts.sweep(file.name for file in files)

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

    def _brought(self, name: str) -> Delivery | None:
        with suppress(OutputError):  # what somebody put in its place is not what a download brought
            found = self._status(name)
            return None if found is None else self._records.delivery(name, found)
        return None

    def _status(self, name: str) -> os.stat_result | None:
        with writing(self.path / name):
            return self._tree.status(checked(name))


def _delivery(file: RemoteFile, found: os.stat_result, repository: str) -> Delivery:
    return Delivery(found.st_size, found.st_mtime_ns, file.digest, repository)


def _same(before: os.stat_result, after: os.stat_result) -> bool:
    return (before.st_size, before.st_mtime_ns, before.st_ctime_ns) == (
        after.st_size,
        after.st_mtime_ns,
        after.st_ctime_ns,
    )
